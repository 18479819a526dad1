"use strict";
(async () => {
  const read = (id) => document.getElementById(id).textContent;
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const hidden = new Set();

  // The plotting library is packed: base64 of gzip.
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text.trim()), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  // Put the page's colours in the place of var(--name), wherever one stands.
  const resolve = (value, style) => {
    if (Array.isArray(value)) return value.map((inner) => resolve(inner, style));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, style)]));
    const name = typeof value === "string" && /^var\((--[a-z0-9-]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  };

  const draw = () => {
    const style = getComputedStyle(root);
    const touch = matchMedia("(pointer: coarse)").matches;
    const config = { responsive: true, displayModeBar: false }; // its buttons lead to the network
    plots.forEach((plot, i) => {
      const { data, layout } = resolve(figures[i], style);
      for (const trace of data) trace.visible = !hidden.has(trace.meta);
      layout.font.family = getComputedStyle(document.body).fontFamily;
      layout.dragmode = touch ? false : "zoom"; // a finger scrolls the page
      Plotly.react(plot, data, layout, config);
    });
  };

  // The head of a column sorts by it: words as A to Z first, numbers as the largest first.
  const number = (text) =>
    parseFloat((/-?\d[\d.]*(e[-+]?\d+)?/.exec(text.replaceAll(",", "")) || [])[0]);
  const sortable = (table) => {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const sort = (i, up) => {
      const rows = [...body.rows].map((row) => [row.cells[i].textContent, row]);
      const known = ([text]) => !Number.isNaN(number(text));
      const words = i === 0 || !rows.some(known);
      const differ = words ? ([a], [b]) => a.localeCompare(b) : ([a], [b]) => number(a) - number(b);
      const there = words ? rows : rows.filter(known); // what has no number comes last
      there.sort((a, b) => (up ? differ(a, b) : differ(b, a)));
      body.append(...[...there, ...rows.filter((row) => !there.includes(row))].map(([, row]) => row));
    };
    heads.forEach((head, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const up = before ? before === "descending" : i === 0;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(i, up);
      });
    });
  };
  document.querySelectorAll(".sortable").forEach(sortable);

  let figures;
  try {
    figures = JSON.parse(read("figures"));
    const library = document.createElement("script");
    library.textContent = await unpack(read("library"));
    document.head.append(library);
    root.classList.remove("undrawn");
    draw();
  } catch (error) {
    root.classList.add("undrawn");
    document.getElementById("undrawn").hidden = false;
    throw error;
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const buttons = [...document.querySelectorAll(".legend button")];
  const show = () => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(!hidden.has(i))));
    draw();
  };
  buttons.forEach((button, series) => {
    button.addEventListener("click", () => {
      if (!hidden.delete(series)) hidden.add(series);
      show();
    });
    button.addEventListener("dblclick", () => { // this one alone; once more, all
      const alone = !hidden.has(series) && hidden.size === buttons.length - 1;
      hidden.clear();
      if (!alone) buttons.forEach((_, other) => other !== series && hidden.add(other));
      show();
    });
  });
  root.dataset.drawn = String(plots.length);
})();

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
  for (const button of document.querySelectorAll(".legend button"))
    button.addEventListener("click", () => {
      const series = Number(button.dataset.series);
      if (!hidden.delete(series)) hidden.add(series);
      button.setAttribute("aria-pressed", String(!hidden.has(series)));
      draw();
    });
  root.dataset.drawn = String(plots.length);
})();

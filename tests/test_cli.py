import io
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from avalanche_peftcl import __version__, cli, errors
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.registry.packages import SWITCH
from avalanche_peftcl.runs.record import RunRecord


@pytest.fixture
def peftcl(monkeypatch: pytest.MonkeyPatch):
    """Run the command with the built-in package alone."""
    monkeypatch.setenv(SWITCH, "")
    return lambda *words: CliRunner().invoke(cli.app, words)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch):
    """Put a stand-in in the place of a run; ``calls.error`` is what it raises or warns of."""
    module = types.ModuleType("avalanche_peftcl.runs.command")
    seen = types.SimpleNamespace(error=None, arguments=[])

    def load_config(path, overrides, *, seeds):
        return types.SimpleNamespace(read=(path, overrides), seeds=seeds)

    def run_and_show(config, overwrite, console, *, floors):
        seen.arguments.append((*config.read, overwrite, *(["floors"] if floors else [])))
        console.print("running")
        if isinstance(seen.error, Warning):
            warnings.warn(seen.error, stacklevel=2)
        elif seen.error is not None:
            raise seen.error

    def resume_from_folder(folder, path, overrides, overwrite, console, *, floors):
        told = ["floors"] if floors else []
        seen.arguments.append((folder, path, overrides, overwrite, *told))

    module.run_and_show = run_and_show  # type: ignore[attr-defined]
    module.resume_from_folder = resume_from_folder  # type: ignore[attr-defined]
    monkeypatch.setattr("avalanche_peftcl.sweeps.command.load_config", load_config)
    monkeypatch.setitem(sys.modules, "avalanche_peftcl.runs.command", module)
    return seen


def test_version(peftcl):
    result = peftcl("--version")
    assert (result.exit_code, result.stdout) == (0, f"avalanche-peftcl {__version__}\n")


def test_list_shows_every_kind_with_provider_version_and_source(peftcl):
    result = peftcl("list")
    assert result.exit_code == 0
    rows = [[c.strip() for c in r.split("│")[1:-1]] for r in result.stdout.splitlines() if "│" in r]
    assert ["strategy", "ntk_cl", "avalanche-peftcl", __version__, "arXiv 2407.17120"] in rows
    assert {row[0] for row in rows} == set(KINDS)
    assert all(all(row) for row in rows)


def test_list_one_kind(peftcl):
    result = peftcl("list", "module")
    assert "patch_prompt" in result.stdout
    assert "ntk_cl" not in result.stdout


def test_list_one_component_shows_its_options(peftcl):
    result = peftcl("list", "strategy_plugin", "lwf")
    assert result.exit_code == 0, result.stderr
    rows = [[c.strip() for c in r.split("│")[1:-1]] for r in result.stdout.splitlines() if "│" in r]
    assert ["temperature", "float (>= 0.001, <= 1000)", "2.0"] in [row[:3] for row in rows]
    assert result.stdout.splitlines()[:2] == [
        f"strategy_plugin lwf of avalanche-peftcl {__version__}: arXiv 1606.09282; Avalanche "
        "LwFPlugin",
        "scenarios: class, domain, online",
    ]


def test_list_unknown_kind(peftcl):
    result = peftcl("list", "methods")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: unknown kind 'methods'; the kinds are backbone, module, head, benchmark, "
        "strategy, strategy_plugin, metric, logger\n"
    )


def test_list_unknown_name(peftcl):
    result = peftcl("list", "strategy", "naif")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: unknown strategy 'naif' (did you mean 'naive'?); known: "
    )
    assert "Traceback" not in result.stderr


def test_plugins(peftcl):
    result = peftcl("plugins")
    assert result.exit_code == 0
    rows = [[c.strip() for c in r.split("│")[1:-1]] for r in result.stdout.splitlines() if "│" in r]
    assert rows[0] == ["avalanche-peftcl", __version__, "builtin", "loaded", ""]


@pytest.mark.parametrize("command", ["list", "plugins"])
def test_a_package_that_was_left_out_is_one_line_on_stderr(peftcl, tmp_path, monkeypatch, command):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avalanche_peftcl]\nbroken = nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(SWITCH, "broken")
    result = peftcl(command)
    assert result.exit_code == 0
    cause = "ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    assert result.stderr == (
        "warning: plugin package broken 1.0 (entry point 'broken', with avalanche-peftcl "
        f"{__version__}) was left out: {cause}\n"
    )
    if command == "plugins":
        (row,) = [r for r in result.stdout.splitlines() if "broken" in r]
        assert [c.strip() for c in row.split("│")[1:-1]] == [
            "broken",
            "1.0",
            "broken",
            "left out",
            cause,
        ]


def test_run_hands_on_what_was_typed(peftcl, calls):
    result = peftcl("run", "a.yaml", "seed=1", "strategy.lr=0.1", "--overwrite")
    assert (result.exit_code, result.stdout) == (0, "running\n")
    assert peftcl("run", "b.yaml").exit_code == 0
    assert calls.arguments == [
        (Path("a.yaml"), ["seed=1", "strategy.lr=0.1"], True),
        (Path("b.yaml"), [], False),
    ]


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (["seed=1"], "first the file, then what it changes: run FILE.yaml seed=1"),
        (["seed=1", "--resume", "runs/a"], "a run that goes on keeps its settings"),
    ],
)
def test_a_setting_in_the_place_of_the_file(peftcl, calls, words, way_out):
    result = peftcl("run", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: seed=1 stands where the YAML file of the run does; ")
    assert way_out in result.stderr
    assert not calls.arguments


def test_run_hands_on_what_to_resume(peftcl, calls):
    assert peftcl("run", "--resume", "runs/a").exit_code == 0
    assert peftcl("run", "a.yaml", "seed=1", "--resume", "runs/a", "--overwrite").exit_code == 0
    assert calls.arguments == [
        (Path("runs/a"), None, [], False),
        (Path("runs/a"), Path("a.yaml"), ["seed=1"], True),
    ]


def test_run_needs_a_file_or_a_folder(peftcl, calls):
    result = peftcl("run")
    assert result.exit_code == 2
    assert result.stderr == ("error: give a YAML file that describes the run, or --resume FOLDER\n")
    assert calls.arguments == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ConfigError("seed: [x] is wrong\n  line two"),
            2,
            "error: seed: [x] is wrong\n  line two\n",
        ),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted: the experiences of a run that were finished are on disk, in its output "
            "folder; peftcl run --resume FOLDER goes on with it\n",
        ),
    ],
)
def test_errors_are_one_message_and_a_code(peftcl, calls, error, code, said):
    calls.error = error
    result = peftcl("run", "a.yaml")
    assert result.exit_code == code
    assert result.stderr == said


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Warning")])
def test_warnings_of_ours_are_one_line(peftcl, calls, name):
    calls.error = getattr(errors, name)("look out")
    result = peftcl("run", "a.yaml")
    assert (result.exit_code, result.stderr) == (0, "warning: look out\n")


def test_a_bug_keeps_its_traceback(peftcl, calls):
    calls.error = RuntimeError("a bug")
    assert isinstance(peftcl("run", "a.yaml").exception, RuntimeError)


def test_main_ends_with_the_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peftcl", "list", "nothing"])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown kind 'nothing'")


HEAVY = {"torch", "avalanche", "timm", "peft", "sklearn", "matplotlib", "wandb"}


def test_what_only_reads_imports_neither_torch_nor_avalanche(tmp_path, record_of):
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / part / "1.png")
    RunRecord(tmp_path / "run", record_of(2, 2)).write()
    commands = [
        (["--help"], {"scipy", "plotly", "yaml"}),
        (["--version"], {"scipy", "plotly", "yaml"}),
        (["list"], {"scipy", "plotly", "yaml"}),
        (["plugins"], {"scipy", "plotly", "yaml"}),
        (["export", "--help"], {"scipy", "plotly", "yaml"}),
        (["init", str(tmp_path), str(tmp_path / "run.yaml")], {"scipy", "plotly", "numpy"}),
        (["compare", str(tmp_path / "run")], {"scipy", "plotly"}),  # one seed has no interval
    ]
    code = (
        "import json, sys\n"
        "from avalanche_peftcl.cli import app\n"
        "for words, heavy in json.loads(sys.argv[1]):\n"
        "    app(words, standalone_mode=False)\n"
        "    found = sorted(set(heavy) & set(sys.modules))\n"
        "    found and print(words, found, file=sys.stderr)\n"
    )
    told = json.dumps([(words, sorted(HEAVY | more)) for words, more in commands])
    result = subprocess.run(
        [sys.executable, "-c", code, told],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {SWITCH: "", "PYTHONIOENCODING": "utf-8"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_says_on_a_terminal_that_imports_take_a_while(calls, monkeypatch, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stderr", Stream())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    cli.app(["run", "a.yaml"], standalone_mode=False)
    said = sys.stderr.getvalue()
    assert ("importing torch and Avalanche ..." in said) if terminal else not said
    assert sys.stdout.getvalue() == "running\n"


def test_the_word_about_imports_comes_before_them(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("{output: a, backbone: vit_glyph, benchmark: digits, strategy: ntk_cl}")
    commands = """
        run FILE
        run FILE --dry-run
        run FILE --print-config
        run --resume FOLDER
        manifest FILE FOLDER
        export FOLDER FOLDER --peft
        export FOLDER FOLDER --onnx
        predict FOLDER FOLDER
        evaluate FOLDER FOLDER
        push FOLDER a/b
        list strategies ntk_cl
        plugins --check
        schema
    """.replace("FILE", str(file)).replace("FOLDER", str(tmp_path))
    code = (
        "import json, sys\n"
        "from avalanche_peftcl.cli import app, exporting, offering, running\n"
        "from avalanche_peftcl.sweeps import command\n"
        "class Said(Exception): pass\n"
        "def tell(of): raise Said\n"
        "for module in (command, exporting, offering, running):\n"
        "    module.tell_imports = tell\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        app(words, standalone_mode=False)\n"
        "        print('nothing was said:', words)\n"
        "    except Said:\n"
        "        pass\n"
        "    print(*{'torch', 'avalanche', 'scipy', 'timm'} & set(sys.modules), end='')\n"
    )
    told = json.dumps([line.split() for line in commands.split("\n") if line.strip()])
    done = subprocess.run([sys.executable, "-c", code, told], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_list_says_what_an_option_is_and_knows_kinds_in_the_plural(peftcl):
    result = peftcl("list", "strategy-plugins", "lwf")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("strategy_plugin lwf of ")
    assert "istillation" in result.stdout
    assert peftcl("list", "plugins").stdout == peftcl("list", "strategy_plugin").stdout


def test_lists_for_programs(peftcl):
    told = json.loads(peftcl("list", "--json").stdout)
    assert {each["kind"] for each in told} == set(KINDS)
    told = json.loads(peftcl("list", "strategies", "ntk_cl", "--json").stdout)
    (rate,) = [option for option in told["options"] if option["name"] == "lr"]
    assert rate["schema"]["exclusiveMinimum"] == 0
    assert rate["text"]
    package, *_ = json.loads(peftcl("plugins", "--json").stdout)
    assert "strategy ntk_cl" in package["components"]


def test_plugins_check_fails_where_a_builder_cannot_be_imported(peftcl, tmp_path, monkeypatch):
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avalanche_peftcl]\nodd = odd_offer\n")
    (tmp_path / "odd_offer.py").write_text(
        "from avalanche_peftcl import Component, hookimpl\n"
        "@hookimpl\n"
        "def peftcl_heads():\n"
        "    yield Component('odd', 'nowhere_at_all:build', source='test')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(SWITCH, "odd")
    assert peftcl("plugins").exit_code == 0
    result = peftcl("plugins", "--check")
    assert result.exit_code == 1
    assert result.stderr.startswith("head odd/odd: head 'odd' of odd 1.0 cannot be loaded")
    told = json.loads(peftcl("plugins", "--check", "--json").stdout)
    assert [each["component"] for each in told["broken"]] == ["head odd/odd"]


@pytest.mark.slow  # what is written: tests/config/test_json_schema.py
def test_the_schema_is_written_to_a_file_or_shown(peftcl, tmp_path):
    file = tmp_path / "run.json"
    assert peftcl("schema", str(file)).exit_code == 0
    written = json.loads(file.read_text())
    assert written == json.loads(peftcl("schema").stdout)
    assert set(written["properties"]) >= {"backbone", "plugins", "seeds"}


def test_shells_complete_kinds_and_names(monkeypatch):
    monkeypatch.setenv(SWITCH, "")
    ask = {"_PEFTCL_COMPLETE": "complete_bash", "COMP_WORDS": "peftcl list str", "COMP_CWORD": "2"}
    result = CliRunner().invoke(cli.app, [], env=ask, prog_name="peftcl")
    assert result.stdout.split() == ["strategy", "strategy_plugin"]
    ask |= {"COMP_WORDS": "peftcl list strategy nt", "COMP_CWORD": "3"}
    result = CliRunner().invoke(cli.app, [], env=ask, prog_name="peftcl")
    assert result.stdout.split() == ["ntk_cl"]

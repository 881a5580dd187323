"""The `zoo` command: a thin face over the package's functions, a file a group of commands.

torch and timm are imported inside the commands that need them, so that `zoo --help` and `zoo list` answer at
once. Whatever the zoo raises on purpose becomes one message and exit code 2.
"""

import typer

from zoo.cli import evaluate, inspect, look, matching, points, publish, train, use, weights
from zoo.cli._app import app, main

__all__ = ["app", "main"]

# in the order of `zoo --help`
app.command("list")(look.list_)
app.command()(look.info)
app.command()(inspect.inspect)
app.command()(use.features)
app.command()(use.complete)
app.command()(matching.stereo)
app.command()(matching.flow)
app.command()(points.points)
app.command()(use.demo)
app.command()(weights.convert)
app.command()(weights.export)
app.command()(weights.verify)
app.command()(weights.mirror)
app.command()(publish.push)
app.command()(train.train)
app.command()(train.recipes)
app.command()(train.show_batch)

_eval = typer.Typer(no_args_is_help=True, help="Measure what models have learned.")
_eval.command("pairs")(evaluate.eval_pairs)
_eval.command("points")(evaluate.eval_points)
_eval.command("look")(evaluate.eval_look)
_eval.command("stereo")(matching.eval_stereo)
_eval.command("flow")(matching.eval_flow)
_eval.command("pretext")(evaluate.eval_pretext)
_eval.command("ordering")(evaluate.eval_ordering)
_eval.command("stereo-ordering")(evaluate.eval_stereo_ordering)
app.add_typer(_eval, name="eval")

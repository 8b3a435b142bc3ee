"""`surgery code`"""

from __future__ import annotations

from pathlib import Path

import click

from surgery.cli import _files, _options
from surgery.cli._output import Output
from surgery.files import replacing


@click.command("code", short_help="Write the network as a plain PyTorch class.")
@_options.file_argument("model")
@click.option("--name", metavar="NAME", default="Network", show_default=True, help="Name of the class.")
@_options.output_file()
@_options.force
@_options.reported
def command(*, model: Path, name: str, target: Path | None, force: bool, output: Output) -> None:
    """Write the network as a PyTorch class, for scripts that keep their networks in source.

    Its layers are named like the tensors of the graph, so the state dict fits:
    torch.save(surgery.torch.to_module(surgery.load(MODEL)).state_dict(), "net.pt"). Without -o the class is printed.

    \b
    Example:
      surgery code wide.onnx -o net.py
      surgery code wide.onnx --name Agent
    """
    import surgery.torch

    path = None if target is None else _files.check_target(target, [model], force=force)
    source = surgery.torch.code(surgery.load(model, optimizer=False), name=name)
    if path is not None:
        data = source.encode()
        with replacing([path], force=force, needed=len(data)) as (temporary,):
            temporary.write_bytes(data)
    report = {"output": None if path is None else str(path), "name": name, "source": source}
    lines = len(source.splitlines())
    output.show(
        report, lambda: source.rstrip() if path is None else f"class {name}, {lines} lines · wrote {path}"
    )

"""`corenn warmup`: compile before the first use, as in an image build."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from . import console


def warmup(
    dtype: Annotated[list[str] | None, typer.Option(help="Stored dtype; may be repeated. Default: all.")] = None,
    metric: Annotated[str, typer.Option(help="Metric; all metrics share their kernels.")] = "l2",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile the kernels into the cache now, so that nothing waits for them later.

    They compile once per machine and version; databases of any dimension and metric share them.

    Example: corenn warmup --dtype f32 --dtype u8
    """
    from ..config import DTYPES, Settings
    from ..kernels.jit import cache_folder
    from ..warmup import compiled

    wanted = [Settings(dim=1, dtype=name, metric=metric) for name in dtype or DTYPES]
    cold = [settings for settings in wanted if not compiled(settings)]
    began = time.perf_counter()
    for settings in cold:
        console.compile_kernels(settings)
    seconds, folder = time.perf_counter() - began, str(cache_folder())
    if as_json:
        done = [settings.dtype for settings in cold]
        console.print_json({"folder": folder, "compiled": done, "seconds": round(seconds, 3)})
    elif cold:
        console.stdout().print(f"Compiled in {seconds:.1f} s into {folder}", markup=False, soft_wrap=True)
    else:
        console.stdout().print(f"Already compiled in {folder}", markup=False, soft_wrap=True)

"""`cabm table build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build_table(
    observations: Annotated[Path, typer.Argument(help="observations.npz of the edge_to_bit stage.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table (JSON) to write.")],
    strategy: Annotated[str, typer.Option(help="monotone, lowest or majority.")] = "monotone",
    fab_cap: Annotated[float | None, typer.Option(help="Drop rows whose FAB is not below this.")] = None,
    max_loss_db: Annotated[
        float, typer.Option(min=0, help="PSNR that bypassing may cost over all tiles; 0: no bypass.")
    ] = 0.01,
    max_tile_loss_db: Annotated[float, typer.Option(min=0, help="PSNR that any one tile may lose.")] = 0.3,
) -> None:
    """Build a table from stored observations, without running the network.

    Example: cabm table build tables/observations.npz --strategy monotone -o monotone.json
    """
    from cabm.tables.bypass import apply_bypass
    from cabm.tables.cost import fab
    from cabm.tables.observations import Observations
    from cabm.tables.table import build_table as make_table

    found = Observations.load(observations)
    table = make_table(found.scores, found.bits, **found.origin, strategy=strategy, fab_cap=fab_cap)
    table = apply_bypass(table, found, max_loss_db=max_loss_db, max_tile_loss_db=max_tile_loss_db)
    table.save(output)
    bypassed = table.bypass["share"] if table.bypass else 0.0
    facts = f"{len(table.rows)} rows, FAB {fab(table.lookup(found.scores)):.2f}"
    typer.echo(f"wrote {output}: {facts}, {bypassed:.0%} of the validation pixels bypassed")

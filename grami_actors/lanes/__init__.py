"""Where handlers run: one file per lane, one contract (:class:`grami_actors.cell.Lane`). Floor 9."""

"""Models whose parameters are spread over the ranks of a process group (DTensor: FSDP2, HSDP; docs/scaling.md)."""

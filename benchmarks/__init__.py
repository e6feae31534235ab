"""Speed, time split and memory of this package beside SB3, sb3-contrib and SBX; see ``docs/performance.md``."""

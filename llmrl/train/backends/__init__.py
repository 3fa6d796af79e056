"""How several processes share a policy: `choose` and `build` (build.py), one file a back-end, gathering in gather.py."""

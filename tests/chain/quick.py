"""cdn-statistical, whose second takes 50 ms: what it tells apart only after half a minute, a test need not wait for."""

import runpy

import services.statistical.keeper

services.statistical.keeper.FLUSH_S = 0.05
runpy.run_module("services.statistical", run_name="__main__")

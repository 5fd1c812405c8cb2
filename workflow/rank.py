"""One process of a run that is given several GPUs; `accelerate launch` starts it."""

from skinrepro.job import rank_main

rank_main()

"""One process of a run that is given several GPUs; `accelerate launch` starts it."""
from skinrepro.workflow import rank_main

rank_main()

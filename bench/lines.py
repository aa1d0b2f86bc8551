"""What the writers of `writers.py` say, over and over: made once, in the process that they are forked from."""

import script

SEED = 20_250_601
TURNS = script.chat(200, SEED).turns

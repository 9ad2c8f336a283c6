"""Files of any size through `score` and `infer`: time and memory at 10^4, 10^5 and 10^6 episodes."""

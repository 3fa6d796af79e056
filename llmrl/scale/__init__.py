"""What a run would cost on another machine: measured phase costs, a discrete-event simulation, the best split.

workload  a measured run's groups: prompts, long-tailed completion lengths, which rows train
costs     seconds of each phase, fitted to measured runs or given
cores     CPU cores that several processes share
simulate  engines, trainers, weights and staleness as events
sweep     every split of a cluster, and the best
"""

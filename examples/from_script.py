"""Trains a Hawk agent on a dataset and rolls it out, in a script of your own. About two minutes on two cores.

python examples/from_script.py [--updates 500] [--episodes 5]
"""

import argparse

import rlseq
from rlseq.training import OptimConfig, TrainingConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--updates", type=int, default=500)
parser.add_argument("--episodes", type=int, default=5)
options = parser.parse_args()

store = rlseq.data.open_dataset("bundled:halfcheetah-medium-replay")
print(store)
# Short time constants, as `rlseq train` takes them too: good on nearly Markovian tasks like this one.
agent = rlseq.agents.DecisionTransformer.for_data(store, "hawk", backbone_options={"decay_init": "released"})
agent = rlseq.train(agent, store, training=TrainingConfig(updates=options.updates), optim=OptimConfig(lr=1e-3))

scores = rlseq.evaluation.evaluate(agent, episodes=options.episodes, target_return=4200.0, seed=0)
figures = scores.as_dict()
print(f"return {figures['return_mean']:.0f} ± {figures['return_std']:.0f}, {scores.act_us:.0f} us a step")

# A policy by hand: one environment or many, rows start over where episode_start is True.
policy = agent.policy(num_envs=2, target_return=4200.0)
env = rlseq.envs.make_for(agent.info, num_envs=2)
obs, _ = env.reset(seed=0)
reward, start = None, None
for _ in range(100):
    action = policy.act(obs, reward, start)
    obs, reward, terminated, truncated, _ = env.step(action)
    start = terminated | truncated
print(f"after 100 steps: {policy.state_bytes:,} bytes of state an environment, as after the first")

"""Acts from a file that ``rlseq export RUN policy.onnx`` wrote, with onnxruntime and numpy alone.

python examples/act_from_onnx.py policy.onnx
"""

import json
import sys
import time

import numpy as np
import onnxruntime


class Actor:
    """One environment's policy; `act` returns the action for an observation (S,) and the reward of the step before."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.facts = json.loads(self.session.get_modelmeta().custom_metadata_map["rlseq"])
        self.taken = {value.name for value in self.session.get_inputs()}
        self.state = [np.zeros((1, *array["shape"]), array["dtype"]) for array in self.facts["state"]]

    def act(self, obs, reward=0.0, episode_start=False):
        feed = {f"state.{array['name']}": value for array, value in zip(self.facts["state"], self.state, strict=True)}
        feed["obs"], feed["reward"] = np.asarray(obs, np.float32)[None], np.array([reward], np.float64)
        feed["episode_start"] = np.array([episode_start])
        feed["target_return"] = np.array([self.facts["spec"]["target_return"]], np.float64)
        action, *self.state = self.session.run(None, {k: v for k, v in feed.items() if k in self.taken})
        return action[0]


if __name__ == "__main__":
    actor, steps = Actor(sys.argv[1]), 1000
    began = time.perf_counter()
    for step in range(steps):  # your environment's observations and rewards go here
        action = actor.act(np.zeros(actor.facts["spec"]["obs_size"]), reward=0.0, episode_start=step == 0)
    print(f"{1e6 * (time.perf_counter() - began) / steps:.0f} us a step, last action {action}")

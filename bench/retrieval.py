"""What the delta rule is for: a memory whose keys are given new values.

    python bench/retrieval.py [--keys 20] [--features dpfp] [--steps 1000]

Twice as many pairs are written as there are keys, so that most keys are given several values; then one key is asked for, and its last value
is wanted. How keys become queries, what is written, and how strongly, is learned. Printed is the error of what comes back, as a share of
the variance of values: 1 knows nothing, 0 is solved. The sum rule can only blend the values that a key was given.
"""

import argparse

import torch
from torch import Tensor, nn

import foveate

VALUE = 16


class Memory(nn.Module):
    """Keys and values, then one key to ask with -> what the memory gives for it."""

    def __init__(self, keys: int, update: str, features: str, width: int = 32) -> None:
        super().__init__()
        self.update, self.features = update, features
        self.key, self.query = nn.Embedding(keys, width), nn.Embedding(keys, width)
        self.value, self.out = nn.Linear(VALUE, width), nn.Linear(width, VALUE)
        self.strength = nn.Linear(width + VALUE, 1)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        k, q = self.key(keys), self.query(asked).unsqueeze(1)  # [B,M,D], [B,1,D]
        beta = self.strength(torch.cat([k, values], -1)).squeeze(-1).sigmoid().unsqueeze(1) if self.update == "delta" else None
        q, k, v = (x.unsqueeze(1) for x in (q, k, self.value(values)))
        norm = "query" if self.update == "sum" else "none"  # the better one for each
        read = foveate.fast_weight_attention(
            q, k, v, beta, update=self.update, feature_map=self.features, sum_norm=True, attention_norm=norm, causal=False
        )
        out: Tensor = self.out(read.flatten(1))
        return out


def episodes(keys: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs written, one key of them, and its last value."""
    written, values = torch.randint(keys, (count, 2 * keys)), torch.randn(count, 2 * keys, VALUE)
    asked = written.gather(1, torch.randint(2 * keys, (count, 1)))
    places = torch.where(written == asked, torch.arange(2 * keys), -1).amax(1)
    return written, values, asked.squeeze(1), values[torch.arange(count), places]


def error(update: str, given: argparse.Namespace) -> float:
    torch.manual_seed(0)
    memory = Memory(given.keys, update, given.features)
    optimizer = torch.optim.Adam(memory.parameters(), lr=3e-3)
    for _ in range(given.steps):
        *inputs, wanted = episodes(given.keys, 64)
        loss = (memory(*inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    *inputs, wanted = episodes(given.keys, 2000)
    with torch.no_grad():
        return float((memory(*inputs) - wanted).square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--features", default="dpfp", choices=["elu+1", "dpfp"])
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    for update in ("sum", "delta"):
        print(f"{given.features}, {given.keys} keys, {update} rule: error {error(update, given):.3f}")


if __name__ == "__main__":
    main()

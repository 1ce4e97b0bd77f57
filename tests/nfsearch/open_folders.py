"""Opens exported folders with transformers alone and says what their models compute: a script for a process of its own.

    python open_folders.py FOLDER COUNT

FOLDER has the folders 0 .. COUNT-1 and of each a file N.asked: `tokens/NAME` [batch, time] and `prompt/NAME` [time].
Of each it writes N.found (see `answers`), and N.json: the class, the number of parameters, weights missing or unknown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAD, NEW = 7, 6  # the token that pads, how many are generated


class Absent:
    """Finds no nfsearch, as where it is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "nfsearch":
            raise ModuleNotFoundError(name)


def answers(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """`logits/NAME` of tokens; of each prompt `alone/NAME`, its logits, and `left/NAME` and `right/NAME`, its logits
    in a batch of all prompts that is padded on that side; what is generated after it: `cached/NAME`, `plain/NAME`
    (without a cache) and `batched/NAME` (all prompts at once, padded left)."""
    import torch

    names = sorted(name.removeprefix("prompt/") for name in asked if name.startswith("prompt/"))
    prompts = [asked[f"prompt/{name}"] for name in names]
    found = {
        name.replace("tokens/", "logits/"): model(tokens).logits
        for name, tokens in asked.items()
        if name.startswith("tokens/")
    }
    longest = max(map(len, prompts))
    for side in ("left", "right"):
        starts = [longest - len(prompt) if side == "left" else 0 for prompt in prompts]
        tokens = torch.full((len(prompts), longest), PAD)
        mask = torch.zeros_like(tokens)
        for row, (start, prompt) in enumerate(zip(starts, prompts, strict=True)):
            tokens[row, start : start + len(prompt)], mask[row, start : start + len(prompt)] = prompt, 1
        logits = model(tokens, attention_mask=mask).logits
        for row, (start, name) in enumerate(zip(starts, names, strict=True)):
            found[f"{side}/{name}"] = logits[row, start : start + len(prompts[row])]
        if side == "left":
            batched = generated(model, tokens, mask)
    for row, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        found[f"alone/{name}"] = model(prompt[None]).logits[0]
        found[f"cached/{name}"] = generated(model, prompt[None], torch.ones_like(prompt)[None])[0]
        found[f"plain/{name}"] = generated(model, prompt[None], torch.ones_like(prompt)[None], use_cache=False)[0]
        found[f"batched/{name}"] = batched[row]
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def generated(model: Any, tokens: Any, mask: Any, **how: Any) -> Any:
    """The new tokens alone."""
    new = model.generate(
        tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, eos_token_id=None, **how
    )
    return new[:, tokens.shape[1] :]


def main(folder: Path, count: int) -> None:
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    for number in range(count):
        model, loaded = AutoModelForCausalLM.from_pretrained(folder / str(number), output_loading_info=True)
        with torch.no_grad():
            found = answers(model.eval(), load_file(folder / f"{number}.asked"))
        save_file(found, folder / f"{number}.found")
        said = {
            "class": type(model).__name__,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "odd": sorted(str(name) for kind in ("missing_keys", "unexpected_keys") for name in loaded[kind]),
        }
        (folder / f"{number}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

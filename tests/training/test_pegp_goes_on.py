"""What PEGP protects is protected by a strategy that goes on from a checkpoint."""

import torch

from avalanche_peftcl.checkpoints import maybe_load_checkpoint, save_checkpoint


def test_bases_come_back_and_projection_acts(sharp, small_benchmark, make_pegp, tmp_path):
    """What a state dict alone loses: with it old features move, with the checkpoint they stay."""
    path, drift = tmp_path / "a", {}
    first, second, third = small_benchmark().train_stream
    images = torch.stack([first.dataset.eval()[i][0] for i in range(len(first.dataset))])
    old = make_pegp(sharp, "lora", lr=0.05)
    old.train([first, second])
    save_checkpoint(old, path, benchmark=small_benchmark())
    with torch.no_grad():
        before = old.model.eval().embed(images)
    bases = old.projection.bases
    assert any(basis.shape[1] for groups in bases.values() for basis in groups)
    for kind in ("state dict", "checkpoint"):
        new = make_pegp(sharp, "lora", lr=0.05, seed=9)
        if kind == "checkpoint":
            maybe_load_checkpoint(new, path, benchmark=small_benchmark())
            loaded = new.projection.bases
            for name, groups in bases.items():
                assert all(torch.equal(*pair) for pair in zip(loaded[name], groups, strict=True))
        else:
            new.model.load_state_dict(old.model.state_dict())
        new.train(third)
        with torch.no_grad():
            drift[kind] = float((new.model.eval().embed(images) - before).abs().max())
    assert drift["checkpoint"] < 1e-4
    assert drift["state dict"] > 0.1

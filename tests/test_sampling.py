import torch

from agr_trl.sampling import Sampler


def drawn_by(sampler: Sampler, logits: torch.Tensor) -> torch.Tensor:
    """Return one token a row, and check that no other one is left."""
    scores = sampler(torch.zeros(len(logits), 1, dtype=torch.long), logits)
    assert scores.isfinite().sum(dim=1).eq(1).all()
    return scores.argmax(dim=1)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    # Probabilities 1/2, 0, 1/3, 1/6; at temperature 1/2 their squares: 9, 0, 4 and 1 of 14.
    logits = torch.tensor([1 / 2, 0, 1 / 3, 1 / 6]).log().expand(20_000, -1)
    for temperature, expected in (
        (1.0, [1 / 2, 0, 1 / 3, 1 / 6]),
        (0.5, [9 / 14, 0, 4 / 14, 1 / 14]),
    ):
        torch.manual_seed(0)
        counts = torch.bincount(drawn_by(Sampler(temperature), logits), minlength=4)
        probability = torch.tensor(expected)
        error = (probability * (1 - probability) / len(logits)).sqrt()
        assert ((counts / len(logits) - probability).abs() <= 4 * error).all()
        assert counts[1] == 0


def test_the_log_probability_of_each_draw_is_kept():
    sampler = Sampler(temperature=2.0)
    # Of logits 0 and 2 ln 3 at temperature 2: 1/4 and 3/4. A sure token has log-probability 0.
    first = drawn_by(sampler, torch.tensor([[0.0, 9.0]]).log().expand(1, -1))
    assert first.tolist() == [1]
    second = drawn_by(sampler, torch.tensor([[0.0, 2.0 * torch.tensor(3.0).log()]]))
    expected = torch.tensor([0.25, 0.75]).log()[second]
    torch.testing.assert_close(
        sampler.log_probabilities, torch.stack([torch.zeros(1), expected], 1)
    )


def test_a_vocabulary_of_many_blocks_is_drawn_from_as_its_distribution_function_says():
    """Against the look-up in one sum over all tokens; 300 is two blocks and a short one."""
    torch.manual_seed(0)
    for size in (300, 256, 128, 5):
        logits = 3 * torch.randn(2_000, size)
        logits[:, ::3] = -torch.inf
        sampler = Sampler(0.7)
        torch.manual_seed(1)
        drawn = drawn_by(sampler, logits)
        torch.manual_seed(1)
        uniform = torch.rand(len(logits), 1, dtype=torch.float64)
        logps = (logits / 0.7).log_softmax(1)
        below = logps.double().exp().cumsum(1)
        expected = torch.searchsorted(below, uniform * below[:, -1:], right=True)[:, 0]
        assert (drawn == expected).float().mean() > 0.999  # but for rounding at an edge
        assert drawn.remainder(3).ne(0).all()
        torch.testing.assert_close(
            sampler.log_probabilities, logps.gather(1, drawn[:, None]), atol=1e-5, rtol=0
        )


def test_the_last_token_can_be_drawn_and_nothing_beyond_it(monkeypatch):
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    for uniform, token in ((0.0, 0), (0.34, 1), (1 - 1e-16, 2), (1.0, 2)):
        monkeypatch.setattr(torch, "rand", lambda *_, u=uniform, **__: torch.tensor([[u]]).double())
        assert drawn_by(Sampler(1.0), logits).tolist() == [token]

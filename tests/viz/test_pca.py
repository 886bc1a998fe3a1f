"""PCA pictures: repeatable, robust, and of the right tokens."""

import numpy as np
import pytest

from fcache.viz.pca import fit_pca, pca_sheet


def stage_of(seed, height=12, width=20, channels=16):
    rng = np.random.default_rng(seed)
    strong = rng.exponential(size=(height, width, 3)) * (9, 4, 2)
    mixing = np.linalg.qr(np.random.default_rng(5).normal(size=(channels, 3)))[0]
    return strong @ mixing.T + 0.01 * rng.normal(size=(height, width, channels))


def test_axes_span_the_strongest_directions():
    basis = fit_pca([stage_of(0), stage_of(1)])
    mixing = np.linalg.qr(np.random.default_rng(5).normal(size=(16, 3)))[0]
    assert np.abs(basis.axes.T @ mixing).max(1).min() > 0.97
    assert np.allclose(basis.axes.T @ basis.axes, np.eye(3), atol=1e-9)


def test_signs_do_not_depend_on_the_sign_of_the_solver():
    stage = stage_of(0)
    picture = fit_pca([stage]).picture(stage)
    turned = np.ascontiguousarray(stage[::-1, ::-1])
    assert np.array_equal(fit_pca([turned]).picture(turned)[::-1, ::-1], picture)
    mirrored = fit_pca([-stage])
    assert np.array_equal(mirrored.axes, mirrored.axes)
    scores = (-stage - mirrored.mean[0, 0]) @ mirrored.axes
    centred = scores.reshape(-1, 3)
    assert ((centred - centred.mean(0)) ** 3).mean(0).min() > 0


def test_one_outlier_token_does_not_darken_the_picture():
    stage = stage_of(0, 40, 40)
    stage[0, 0] *= 1000
    shown = fit_pca([stage]).picture(stage)
    assert shown[1:].std() > 15
    assert shown.dtype == np.uint8


def test_a_lattice_of_the_window_size_is_taken_off():
    plain = stage_of(0, 32, 48)
    lattice = 30 * np.random.default_rng(9).normal(size=(4, 4, 16))
    stage = plain + np.tile(lattice, (8, 12, 1))
    basis = fit_pca([stage])
    assert basis.mean.shape == (4, 4, 16)
    off = basis.picture(stage).astype(float)
    wanted = fit_pca([plain]).picture(plain).astype(float)
    agreement = [np.corrcoef(off[..., c].ravel(), wanted[..., c].ravel())[0, 1] for c in range(3)]
    assert min(agreement) > 0.9
    assert fit_pca([plain]).mean.shape == (1, 1, 16)


def test_masked_tokens_are_not_fitted():
    stage = stage_of(0)
    padded = np.pad(stage, ((0, 4), (0, 0), (0, 0)), constant_values=500.0)
    mask = np.zeros(padded.shape[:2], bool)
    mask[:12] = True
    first, second = fit_pca([stage]), fit_pca([padded], [mask])
    assert np.allclose(first.axes, second.axes)
    assert np.allclose(first.low, second.low)


def test_constant_stages_and_few_channels_are_drawn_flat():
    assert fit_pca([np.full((4, 4, 8), 3.0)]).picture(np.full((4, 4, 8), 3.0)).max() == 0
    one = stage_of(0)[..., :1]
    shown = fit_pca([one]).picture(one)
    assert shown[..., 0].std() > 10
    assert shown[..., 1:].max() == 0


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        fit_pca([])
    with pytest.raises(ValueError, match="no valid token"):
        fit_pca([stage_of(0)], [np.zeros((12, 20), bool)])
    with pytest.raises(ValueError, match="not finite"):
        fit_pca([np.full((4, 4, 8), np.nan)])
    with pytest.raises(ValueError, match="1 frames and 0 lists"):
        pca_sheet([np.zeros((8, 8, 3), np.uint8)], [])


def test_sheet_has_a_column_per_stage_a_row_per_frame_and_no_padding(tmp_path):
    frames = [np.full((96, 160, 3), 90, np.uint8) for _ in range(2)]
    stages = [[stage_of(i, 24, 40), stage_of(i, 12, 20), stage_of(i, 6, 10)] for i in range(2)]
    for row in stages:
        row[0][16:] = 1e4
    page = pca_sheet(frames, stages, names=["a 00000", "a 00001"], valid_sizes=[(64, 160)] * 2)
    again = pca_sheet(frames, stages, names=["a 00000", "a 00001"], valid_sizes=[(64, 160)] * 2)
    assert page.size[0] == 20 + 4 * 320 + 3 * 6
    assert np.array_equal(np.array(page), np.array(again))
    page.save(tmp_path / "pca.png")
    first_stage = np.array(page)[70:190, 10 + 326 : 10 + 326 + 320]
    assert first_stage.std() > 15

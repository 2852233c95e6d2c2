"""The geometry against exact rational arithmetic, and against OpenCV's idea of a map."""

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
from diinn.runtime.errors import InputError
from diinn.runtime.geometry import grid
from hypothesis import given
from hypothesis import strategies as st

sizes = st.integers(1, 5000)
small = st.integers(1, 64)


def exact(n_in: int, n_out: int, i: int) -> tuple[int, Fraction]:
    """Nearest index and local coordinate of output pixel i, from the definition."""
    centre = Fraction(2 * i + 1, n_out) - 1
    index = int((centre + 1) * n_in / 2)
    nearest = Fraction(2 * index + 1, n_in) - 1
    return index, (centre - nearest) * n_in


def test_index_and_local_are_exact_for_all_small_sizes() -> None:
    for n_in in range(1, 65):
        for n_out in range(1, 65):
            axis = grid.axis(n_in, n_out)
            wanted = [exact(n_in, n_out, i) for i in range(n_out)]
            assert axis.index.tolist() == [index for index, _ in wanted]
            assert axis.local.tolist() == [np.float32(float(local)) for _, local in wanted]


@given(n_in=sizes, n_out=sizes, data=st.data())
def test_index_and_local_are_exact_for_large_sizes(n_in: int, n_out: int, data: st.DataObject) -> None:
    axis = grid.axis(n_in, n_out)
    i = data.draw(st.integers(0, n_out - 1))
    index, local = exact(n_in, n_out, i)
    assert axis.index[i] == index
    assert axis.local[i] == np.float32(float(local))


@given(
    n_in=st.integers(2, 4000),
    n_out=sizes,
    start=st.floats(0, 1, exclude_max=True),
    part=st.floats(1e-6, 1),
)
def test_axis_of_a_part_stays_inside(n_in: int, n_out: int, start: float, part: float) -> None:
    begin = start * n_in
    extent = (n_in - begin) * part
    axis = grid.axis(n_in, n_out, begin, extent)
    assert axis.index.min() >= 0
    assert axis.index.max() < n_in
    assert (np.diff(axis.index) >= 0).all()
    assert np.abs(axis.local).max() <= 1
    position = begin + (np.arange(n_out) + 0.5) * extent / n_out
    assert np.abs(axis.index + 0.5 + axis.local / 2.0 - position).max() < 1e-6 * n_in


def test_half_points_take_the_later_pixel() -> None:
    assert grid.axis(4, 2).index.tolist() == [1, 3]
    assert grid.axis(4, 2).local.tolist() == [-1, -1]


def test_paper_figure_3() -> None:
    axis = grid.axis(2, 4)
    assert axis.index.tolist() == [0, 0, 1, 1]
    assert axis.local.tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert (grid.resize((2, 2), (4, 4)).arrays()[1][:, 2] == 0.25).all()
    assert grid.resize((2, 2), (4, 6)).scales == (2, 3)


@given(width=small, height=small, out_width=small, out_height=small)
def test_roi_of_the_full_frame_is_resize(width: int, height: int, out_width: int, out_height: int) -> None:
    whole = grid.resize((width, height), (out_width, out_height)).arrays()
    part = grid.roi((width, height), (0.0, 0.0, float(width), float(height)), (out_width, out_height)).arrays()
    np.testing.assert_array_equal(whole[0], part[0])
    np.testing.assert_array_equal(whole[1], part[1])


def resize_maps(size: tuple[int, int], dsize: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The float32 maps for which cv2.remap resizes."""
    x = (np.arange(dsize[0]) + 0.5) * size[0] / dsize[0] - 0.5
    y = (np.arange(dsize[1]) + 0.5) * size[1] / dsize[1] - 0.5
    map_x, map_y = np.meshgrid(x, y)
    return map_x.astype(np.float32), map_y.astype(np.float32)


@given(width=small, height=small, scale=st.floats(1, 6))
def test_remap_with_the_resize_map_is_resize(width: int, height: int, scale: float) -> None:
    dsize = (round(width * scale), round(height * scale))
    index, query = grid.resize((width, height), dsize).arrays()
    got_index, got_query = grid.remap((width, height), *resize_maps((width, height), dsize)).arrays()
    same = index == got_index
    ties = np.abs(np.abs(query[:, :2]) - 1).min(axis=1) < 1e-3  # rounding of the map may pick either pixel
    assert (same | ties).all()
    np.testing.assert_allclose(got_query[same, :2], query[same, :2], atol=1e-3)
    if min(dsize) > 1:  # one pixel tells no derivative
        np.testing.assert_allclose(got_query[:, 2], query[:, 2], rtol=1e-3, atol=1e-5)


@given(n_in=sizes, n_out=sizes, data=st.data())
def test_the_corner_layout_is_meta_srs(n_in: int, n_out: int, data: st.DataObject) -> None:
    axis = grid.axis(n_in, n_out, corner=True)
    i = data.draw(st.integers(0, n_out - 1))
    position = Fraction(i * n_in, n_out)
    assert axis.index[i] == int(position)
    assert axis.local[i] == np.float32(float(position - int(position)))


@given(n_in=sizes, n_out=sizes, shift=st.sampled_from((-1, 1)), data=st.data())
def test_shifted_axes_are_liifs(n_in: int, n_out: int, shift: int, data: st.DataObject) -> None:
    axis = grid.axis(n_in, n_out, shift=shift)
    i = data.draw(st.integers(0, n_out - 1))
    position = Fraction((2 * i + 1) * n_in, 2 * n_out)
    index = min(max(math.floor(position + Fraction(shift, 2)), 0), n_in - 1)
    assert axis.index[i] == index
    assert axis.local[i] == np.float32(float(2 * (position - index) - 1))


@given(width=small, height=small, out_width=small, out_height=small)
def test_an_ensemble_is_four_neighbours_and_their_shares(
    width: int, height: int, out_width: int, out_height: int
) -> None:
    queries = grid.resize((width, height), (out_width, out_height), grid.ENSEMBLE)
    index, query = (a.reshape(out_height * out_width, 4, -1) for a in queries.arrays())
    np.testing.assert_allclose(query[..., 4].sum(1), 1, rtol=1e-6)
    assert (query[..., 4] >= 0).all()
    np.testing.assert_allclose(query[..., 2], 2 * height / out_height, rtol=1e-6)
    np.testing.assert_allclose(query[..., 3], 2 * width / out_width, rtol=1e-6)
    centre = np.stack([index[..., 0] // width, index[..., 0] % width], -1) + 0.5
    positions = centre + query[..., :2] / 2  # all four samples speak of one position
    np.testing.assert_allclose(positions, positions[:, :1].repeat(4, 1), atol=1e-4)
    inner = np.abs(query[..., 0, None] * 0 + query[..., :2]).max((1, 2)) < 2
    away = (index[:, 3, 0] - index[:, 0, 0]) == width + 1
    bilinear = np.prod(1 - np.abs(query[..., :2]) / 2, -1)  # inside, the shares are those of bilinear interpolation
    np.testing.assert_allclose(query[away & inner, :, 4], bilinear[away & inner], atol=1e-6)


@pytest.mark.parametrize("layout", grid.LAYOUTS.values())
def test_any_part_of_any_layout_is_that_of_the_whole(layout: grid.Layout) -> None:
    queries = grid.roi((9, 7), (1.25, 0.5, 6.5, 5), (23, 17), layout)
    index, query = queries.arrays()
    for ids in (slice(40, 90), np.array([3, 200, 7])):
        part_index, part_query = queries.arrays(ids)
        np.testing.assert_array_equal(part_index, index.reshape(-1, layout.samples)[ids].reshape(-1))
        np.testing.assert_array_equal(
            part_query, query.reshape(-1, layout.samples, query.shape[1])[ids].reshape(-1, query.shape[1])
        )


def test_remap_ratio_is_the_jacobian_of_a_rotation() -> None:
    v, u = np.mgrid[0:50, 0:60].astype(np.float32)
    map_x = 10 + 0.4 * (np.cos(0.5) * u - np.sin(0.5) * v)
    map_y = 10 + 0.3 * (np.sin(0.5) * u + np.cos(0.5) * v)
    queries = grid.remap((100, 100), map_x.astype(np.float32), map_y.astype(np.float32))
    np.testing.assert_allclose(queries.ratio, 0.4 * 0.3, rtol=1e-3)


def test_remap_ratio_is_one_sided_at_a_jump() -> None:
    map_x = np.tile(np.concatenate([np.arange(20) * 0.5, 60 + np.arange(20) * 0.5]), (10, 1)).astype(np.float32)
    map_y = np.repeat(np.arange(10)[:, None] * 0.5, 40, 1).astype(np.float32)
    queries = grid.remap((100, 100), map_x, map_y)
    np.testing.assert_allclose(queries.ratio, 0.25, rtol=1e-4)


def test_remap_ratio_is_clamped() -> None:
    maps = resize_maps((10, 10), (100, 100))
    queries = grid.remap((10, 10), *maps, ratio_range=(1 / 16, 1))
    assert (queries.ratio == 1 / 16).all()
    np.testing.assert_allclose(queries.scales, 10, rtol=1e-3)


def test_remap_outside_is_marked_or_replicated() -> None:
    map_x = np.array([[-0.6, -0.5, 9.5, 9.6, np.nan]], np.float32)
    map_y = np.zeros_like(map_x)
    constant = grid.remap((10, 10), map_x, map_y)
    assert constant.outside is not None
    assert constant.outside.tolist() == [True, False, False, True, True]
    replicated = grid.remap((10, 10), map_x, map_y, replicate=True)
    assert replicated.index.tolist()[:4] == [0, 0, 9, 9]
    assert np.abs(replicated.local).max() <= 1
    assert replicated.outside is not None
    assert replicated.outside.tolist() == [False] * 4 + [True]


def test_remap_takes_every_form_opencv_takes() -> None:
    map_x, map_y = resize_maps((30, 20), (90, 60))
    plain = grid.remap((30, 20), map_x, map_y)
    pair = grid.remap((30, 20), np.dstack([map_x, map_y]))
    np.testing.assert_array_equal(plain.index, pair.index)
    fixed = cv2.convertMaps(map_x, map_y, cv2.CV_16SC2)
    from_fixed = grid.remap((30, 20), *fixed)
    position = plain.index % 30 + plain.local[:, 1] / 2
    assert np.abs(from_fixed.index % 30 + from_fixed.local[:, 1] / 2 - position).max() <= 1 / 32
    np.testing.assert_allclose(from_fixed.ratio, 1 / 9, rtol=0.1)  # steps of 1/32 px, smoothed


def test_remap_takes_infinities_as_outside() -> None:
    map_x = np.tile(np.arange(0, 8, 0.5, dtype=np.float32), (6, 1))
    map_x[:, 3], map_x[:, 9] = np.inf, -np.inf
    queries = grid.remap((8, 8), map_x, np.full_like(map_x, 2))
    assert queries.outside is not None
    assert np.flatnonzero(queries.outside[:16]).tolist() == [3, 9]
    assert np.isfinite(queries.ratio).all()


def test_remap_refuses_a_fixed_point_pair_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="remap takes"):
        grid.remap((10, 10), np.zeros((4, 4, 2), np.int16), np.zeros((4, 5), np.uint16))


@pytest.mark.parametrize("shapes", [((4, 4), (4, 5)), ((4,), (4,)), ((4, 4, 3), (4, 4)), ((0, 4), (0, 4))])
def test_remap_refuses_maps_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="remap takes"):
        grid.remap((10, 10), np.zeros(shapes[0], np.float32), np.zeros(shapes[1], np.float32))


@given(width=small, height=small, out_width=small, out_height=small, top=st.integers(0, 64), rows=st.integers(0, 64))
def test_in_rows_parts_the_queries(
    width: int, height: int, out_width: int, out_height: int, top: int, rows: int
) -> None:
    regular = grid.resize((width, height), (out_width, out_height))
    mapped = grid.remap((width, height), *resize_maps((width, height), (out_width, out_height)))
    for queries in (regular, mapped):
        index, _ = queries.arrays()
        inside = np.flatnonzero((index // width >= top) & (index // width < top + rows))
        ids = queries.in_rows(top, top + rows)
        got = np.arange(ids.start, ids.stop) if isinstance(ids, slice) else ids
        assert got.tolist() == inside.tolist()


@pytest.mark.parametrize(
    "rect", [(0, 0, 11, 5), (-0.1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5, -1), (3, 3, 8, 5), (0, 0, float("nan"), 5)]
)
def test_roi_outside_the_frame_is_refused(rect: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="not inside the 10x10 frame"):
        grid.roi((10, 10), rect, (20, 20))

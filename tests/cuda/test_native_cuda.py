"""The CUDA part of the extension, on a GPU."""

import cuda_cases
import pytest
import torch

native = pytest.importorskip("we_kernels._native", reason="the extension is not built")
if not hasattr(native, "cuda_status"):
    pytest.skip("the extension is built without CUDA", allow_module_level=True)


def test_architectures():
    assert native.cuda_architectures()


def test_status_says_why_there_is_no_device():
    if torch.cuda.is_available():
        assert native.cuda_status() is None
    else:
        assert "driver" in native.cuda_status() or "device" in native.cuda_status()


def test_running_without_a_device_says_why():
    if native.cuda_status() is None:
        pytest.skip("there is a device")
    with pytest.raises(RuntimeError, match=r"driver|device"):
        native.cuda_importance(8, 8, 1, 1, 8, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, -1, 1, 8, 0, 0), "num_layers must not be negative"),
        ((8, 8, 1, -1, 8, 0, 0), "num_filters must not be negative"),
        ((8, 8, 0, 1, 8, 0, 0), "num_filters must be 0"),
        ((0, 8, 1, 1, 8, 0, 0), "pointers must be the address"),
        ((8, 12, 1, 1, 8, 0, 0), "layers must be the address"),
        ((8, 8, 1, 1, 6, 0, 0), "importance must be the address"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        native.cuda_importance(*arguments)


def importance(weights, dims, stream):
    pointers, layers, output = cuda_cases.tables(weights, dims)
    addresses = pointers.data_ptr(), layers.data_ptr(), len(layers), len(output), output.data_ptr()
    native.cuda_importance(*addresses, weights[0].device.index, stream.cuda_stream)
    return output


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
def test_importance():
    weights, dims = cuda_cases.weights("cuda")
    result = importance(weights, dims, torch.cuda.current_stream())
    cuda_cases.check(result, weights, dims)
    assert torch.equal(result, importance(weights, dims, torch.cuda.current_stream())), "differs from run to run"


@needs_gpu
def test_importance_in_a_graph_on_another_stream():
    weights = [torch.randn(300, 64, 3, 3, device="cuda"), torch.randn(70000, device="cuda")]
    pointers, layers, output = cuda_cases.tables(weights, [0, 0])
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        addresses = pointers.data_ptr(), layers.data_ptr(), len(layers), len(output), output.data_ptr()
        native.cuda_importance(*addresses, weights[0].device.index, stream.cuda_stream)
    assert output.isnan().all(), "ran outside the graph"
    graph.replay()
    cuda_cases.check(output, weights, [0, 0])

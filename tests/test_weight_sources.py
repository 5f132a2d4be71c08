"""Downloads without a network: the URL is opened by a stand-in, or the file is already cached."""

from __future__ import annotations

import email.message
import hashlib
import http.client
import io
import threading
import urllib.error

import pytest
import torch
import torchvision

from models.backbone import BACKBONES, build_backbone
from models.backbone_weights import load_backbone_weights
from models.detector import ModelConfig, build_detector
from models.weight_sources import cache_path, local_file

NAMED = "https://download.pytorch.org/models/resnet18-f37072fd.pth"  # torchvision's


class Response(io.BytesIO):
    """What `urlopen` returns."""

    def info(self):
        headers = email.message.Message()
        headers["Content-Length"] = str(len(self.getvalue()))
        return headers


@pytest.fixture
def web(tmp_path, monkeypatch):
    """URLs to bytes or exceptions, and those that were opened; the cache is in `tmp_path`."""
    pages, opened = {}, []

    def urlopen(request):
        opened.append(request.full_url)
        page = pages.get(request.full_url, urllib.error.URLError("Name or service not known"))
        if isinstance(page, Exception):
            raise page
        return Response(page)

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return pages, opened


def content(name="resnet18"):
    buffer = io.BytesIO()
    torch.save(getattr(torchvision.models, name)(weights=None).state_dict(), buffer)
    return buffer.getvalue()


def checkpoints(tmp_path):
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.mark.parametrize("source", ["torchvision", "torchvision:IMAGENET1K_V1", NAMED])
def test_a_cached_file_needs_no_network(tmp_path, web, source):
    checkpoints(tmp_path).mkdir(parents=True)
    (checkpoints(tmp_path) / "resnet18-f37072fd.pth").write_bytes(content())
    report = load_backbone_weights(build_backbone("resnet18"), source)
    path = checkpoints(tmp_path) / "resnet18-f37072fd.pth"
    assert report.summary().splitlines()[0] == f"backbone weights from {source} ({path})"
    assert len(report.loaded) == 120
    assert web[1] == []


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("version", [None, "IMAGENET1K_V1"])
def test_the_file_is_the_one_that_torchvision_would_load(tmp_path, web, backbone, version):
    weights = torchvision.models.get_model_weights(backbone)
    url = weights[version or "DEFAULT"].url
    # The right hash is the start of the name; the content here is another.
    web[0][url] = b"other content"
    source = f"torchvision:{version}" if version else "torchvision"
    with pytest.raises(ValueError, match="invalid hash value") as caught:
        local_file(source, backbone)
    assert web[1] == [url]
    assert list(checkpoints(tmp_path).iterdir()) == []
    assert url in str(caught.value)


def test_a_download_is_kept(tmp_path, web, capsys):
    data = content()
    digest = hashlib.sha256(data).hexdigest()[:8]
    url = f"https://download.pytorch.org/models/resnet18-{digest}.pth"
    web[0][url] = data
    for _ in range(2):
        load_backbone_weights(build_backbone("resnet18"), url)
    assert web[1] == [url]
    assert (checkpoints(tmp_path) / f"resnet18-{digest}.pth").read_bytes() == data
    said = capsys.readouterr()
    assert said.out.count(f"downloading {url} to ") == 1
    assert "100%" in said.err  # the bar


OFFLINE = [
    urllib.error.URLError("Name or service not known"),
    urllib.error.HTTPError("x", 404, "Not Found", email.message.Message(), None),
    TimeoutError("timed out"),
    ConnectionResetError("reset"),
    http.client.IncompleteRead(b""),
]


@pytest.mark.parametrize("error", OFFLINE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("source", ["torchvision", "https://example.org/a/w.pth"])
def test_offline(tmp_path, web, error, source):
    url = NAMED if source == "torchvision" else source
    web[0][url] = error
    with pytest.raises(ValueError, match="model.backbone_weights is ") as caught:
        build_detector(ModelConfig(backbone="resnet18", backbone_weights=source), 2)
    message = str(caught.value)
    name = "resnet18-f37072fd.pth" if source == "torchvision" else "example.org/a/w.pth"
    path = checkpoints(tmp_path) / name
    assert "\n" not in message
    assert f"{path.name} could not be downloaded ({error})" in message
    assert message.endswith(f"put the file at {path}, or set model.backbone_weights=FILE")
    # Following the advice helps.
    path.write_bytes(content())
    build_detector(ModelConfig(backbone="resnet18", backbone_weights=source), 2)


def test_a_cache_that_cannot_be_made(tmp_path, web):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ValueError, match="could not be downloaded .*File exists|Not a directory"):
        local_file("torchvision", "resnet18")


@pytest.mark.parametrize("version", ["IMAGENET1K_V3", "imagenet1k_v1", "DEFAULTS"])
def test_unknown_names(web, version):
    with pytest.raises(ValueError, match="unknown for resnet50") as caught:
        local_file(f"torchvision:{version}", "resnet50")
    assert f"model.backbone_weights is 'torchvision:{version}'" in str(caught.value)
    assert "torchvision:IMAGENET1K_V1, torchvision:IMAGENET1K_V2" in str(caught.value)


def test_a_backbone_that_torchvision_lacks(web):
    with pytest.raises(ValueError, match="torchvision, which has no weights of resnet9; set it to"):
        local_file("torchvision", "resnet9")


def test_other_hosts_files_of_one_name_are_kept_apart(tmp_path, web):
    """Torch.hub's own cache goes by the last part of the URL alone."""
    urls = [
        "https://example.org/barlowtwins/resnet50.pth",
        "https://example.org/vicreg/resnet50.pth",
        "https://example.org/vicreg/resnet50.pth?download=1",
        "https://example.com/vicreg/resnet50.pth",
    ]
    for number, url in enumerate(urls):
        web[0][url] = b"%d" % number
    assert [local_file(url, "resnet50").read_bytes() for url in urls] == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "url",
    ["https://h/../../../etc/w.pth", "https://h/%2e%2e/%2e%2e/w.pth", "https://h/a%2f../w.pth"],
)
def test_no_url_leaves_the_cache(tmp_path, web, url):
    path = cache_path(url)
    assert path.resolve() == path
    assert path.is_relative_to(checkpoints(tmp_path) / "h")


def test_processes_that_start_together_download_once(tmp_path, web):
    """Here threads, as a lock of a file belongs to whoever opened it."""
    web[0]["https://h/w.pth"] = b"weights"
    start = threading.Barrier(4)

    def fetch():
        start.wait()
        local_file("https://h/w.pth", "resnet18")

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert web[1] == ["https://h/w.pth"]
    assert [path.name for path in (checkpoints(tmp_path) / "h").iterdir()] == ["w.pth"]

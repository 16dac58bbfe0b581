"""The documents that every machine has."""

from data.document import Document
from data.sources import python_installation


def test_the_python_installation_is_real_text_with_a_licence():
    ids, sources = set(), set()
    for partition in python_installation.partitions(None):
        for item in python_installation.read(None, partition):
            if isinstance(item, Document):
                assert item.license == "PSF-2.0"
                assert item.url.startswith("python:")
                assert item.id not in ids
                ids.add(item.id)
                sources.add(item.source)
    assert {"python/source/argparse", "python/builtins/math"} <= ids
    assert "python-source" in sources
    assert len(ids) > 300
    assert not any("test" in identifier.split(".") for identifier in ids)


def test_docstrings_are_gathered_once_each():
    import itertools

    gathered = python_installation.docstrings(itertools)
    assert "itertools.chain\n" in gathered
    assert gathered.count(itertools.chain.__doc__.strip()) == 1


def test_the_python_installation_is_known_by_every_name_and_size(tmp_path, monkeypatch):
    def inputs(sizes):
        for name, size in sizes.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("#" * size)
        python_installation.modules.cache_clear()
        return python_installation.inputs(None)

    monkeypatch.setattr(python_installation.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    try:
        first = inputs({"a.py": 1, "b/__init__.py": 2, "site-packages/c.py": 3, "b/test/d.py": 4})
        assert first["modules"] == 2
        assert [name for name, _ in python_installation.modules()] == ["a", "b"]
        assert python_installation.modules() is python_installation.modules()
        assert inputs({"a.py": 2, "b/__init__.py": 1}) != first  # the sum is the same
        assert inputs({"a.py": 1, "b/__init__.py": 2, "site-packages/c.py": 5}) == first
    finally:
        python_installation.modules.cache_clear()

import shutil


def test_a(model_folder, cast_file, reference_file, data_file):
    for p in (model_folder, cast_file, reference_file, data_file):
        d = "/tmp/probe/" + p.name
        shutil.rmtree("/tmp/probe/tiny", ignore_errors=True) if p.is_dir() else None
        shutil.copytree(p, d) if p.is_dir() else shutil.copy(p, d)

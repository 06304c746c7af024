PRESETS = {}
def write_scenes(root, preset='small', seed=0):
    raise NotImplementedError

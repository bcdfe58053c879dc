"""Module preloaded by the `multiprocessing` fork server (`set_forkserver_preload`); importing it has the effect."""

from t2t_common.data.workers import wake_with_parent

wake_with_parent()

"""For the process that `multiprocessing` forks workers from: importing this there (`set_forkserver_preload`) is all."""

from t2t_common.data.workers import wake_with_parent

wake_with_parent()

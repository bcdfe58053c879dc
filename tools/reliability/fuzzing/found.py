"""What the campaign found in the product, all of it fixed."""

from __future__ import annotations

from tools.reliability.record import Defect

_FOUND = (
    (
        "A report with a gate below zero ended its page with an error that named no file.",
        "tests/parity/report/test_svg.py::test_zero_infinity_and_nan_have_the_edges_for_themselves",
    ),
    (
        "A checkpoint of 200 bytes hung the reader (.pth, .pdparams): as the key of a dictionary, a tuple of twice a "
        "tuple of twice ... is walked through 2^60 times.",
        "tests/torch/weights/test_safe_unpickle.py::test_a_key_that_takes_forever",
    ),
    ("A label map could do the same.", "tests/common/data/readers/test_torch_tensor.py::test_a_key_that_takes_forever"),
    (
        "A .pdparams file of a megabyte filled gigabytes, by one text made a tuple again and again.",
        "tests/torch/weights/test_safe_unpickle.py::test_a_long_text_made_a_tuple_again_and_again",
    ),
    (
        "A dictionary that a pickle names many times was looked through and copied as often.",
        "tests/torch/weights/test_safe_unpickle.py::test_a_dictionary_that_is_there_a_thousand_times",
    ),
    (
        "The metadata of a run's checkpoints in PyTorch were read without the checks that weights get.",
        "tests/torch/training/test_checkpoints.py::test_metadata_are_read_as_carefully_as_weights",
    ),
    (
        "An accuracy in a checkpoint's metadata that is no number ended the run that continues with a TypeError.",
        "tests/torch/training/test_checkpoints.py::test_an_accuracy_that_is_no_number_is_none",
    ),
    (
        "PostScript in a file called .jpg made Pillow start Ghostscript.",
        "tests/common/data/test_images.py::test_what_an_image_file_may_be",
    ),
    (
        "A PNG of some hundred bytes, one pixel wide, filled gigabytes when its short side was fitted to the model's.",
        "tests/common/data/test_images.py::test_an_image_that_would_fill_the_memory",
    ),
    (
        "A gzipped IDX file unpacked to any size.",
        "tests/common/data/readers/test_readers.py::test_an_idx_file_that_unpacks_to_far_more_than_its_size",
    ),
    (
        "A label of a tar shard beyond 32 bits became another label (2^32 became 0), a longer one an OverflowError, "
        "and brackets without end in KEY.json a RecursionError.",
        "tests/common/data/readers/test_shards.py::test_labels_that_no_model_has",
    ),
    (
        "A size below zero in a tar header can lead Python's tarfile back for ever.",
        "tests/common/data/readers/test_shards.py::test_a_size_below_zero_does_not_lead_back_for_ever",
    ),
    (
        "Numbers in extended tar headers that are none gave an error that named no file.",
        "tests/common/data/readers/test_shards.py::test_headers_that_are_no_numbers_are_named",
    ),
    (
        "A shard called ...-of-9999999999 made a list of ten billion numbers.",
        "tests/common/data/readers/test_shards.py::test_a_name_that_tells_of_billions_of_shards",
    ),
    (
        "A damaged index of shards in the cache was taken as it was, or ended the reader.",
        "tests/common/data/readers/test_shards.py::test_a_damaged_index_is_made_anew",
    ),
    (
        "An ArrayRecord shard with a line break in its name gave a RuntimeError.",
        "tests/common/data/readers/test_shards.py::test_a_shard_whose_name_array_record_cannot_take",
    ),
    (
        "Checkpoints called by digits that are no number (a superscript two) gave an error that named no file.",
        "tests/common/workdir/test_folder.py::test_numbers_that_are_no_steps",
    ),
    (
        "Orbax arrays far larger than their files were made of zeros, of any size.",
        "tests/jax/test_checkpoint.py::test_arrays_far_larger_than_their_files_are_refused",
    ),
    (
        "Metadata of an Orbax folder that are no dictionary gave an error that named no file.",
        "tests/jax/test_checkpoint.py::test_metadata_that_are_no_dictionary",
    ),
    ("A link to itself gave a RuntimeError.", "tests/jax/test_checkpoint.py::test_a_link_to_itself_is_nothing"),
    (
        "Tensors of odd shapes under known names gave IndexError and TypeError.",
        "tests/config/test_shapes.py::test_shapes_of_no_model_tell_nothing",
    ),
    (
        "A tensor without axes called weight could not be read in JAX.",
        "tests/jax/weights/test_torch_file.py::test_a_weight_without_axes_is_no_matrix",
    ),
    (
        "An img_size of Infinity, or of brackets without end, in a file's metadata ended the load.",
        "tests/torch/test_checkpoint.py::test_a_saved_size_that_makes_no_sense_is_none",
    ),
    (
        "A name of a megabyte of module. took hours.",
        "tests/config/weights/test_layouts.py::test_a_name_of_nothing_but_prefixes_is_not_walked_through",
    ),
    (
        "Names of strangers went into messages with line breaks, control characters and any length.",
        "tests/config/weights/test_load_report.py::test_names_of_strangers_fit_into_a_line",
    ),
    (
        "config.json of a stranger's model could start a download (pretrained), or make a model of any size.",
        "tests/torch/test_hub.py::test_a_configuration_that_makes_no_model_of_this_file",
    ),
    (
        "Metadata of the wrong kind gave TypeError, AttributeError and OverflowError in the command lines.",
        "tests/config/weights/test_untrusted.py::test_metadata_of_a_wrong_kind_are_named",
    ),
    (
        "%2F in an address chose where a download was written.",
        "tests/config/weights/test_download.py::test_an_address_that_does_not_end_with_a_name",
    ),
    (
        "What lay beside a broken download, damaged, ended the next one.",
        "tests/config/weights/test_download.py::test_a_damaged_mark_of_the_version_is_none",
    ),
    (
        "A Content-Length that is no number gave an error that named no address.",
        "tests/config/weights/test_download.py::test_a_length_that_is_no_number",
    ),
    (
        "A line of metrics.jsonl that is no object with a step ended the run that continues.",
        "tests/common/workdir/test_writers.py::test_a_damaged_line_is_kept_aside_and_told_and_all_others_stay",
    ),
    (
        "A metrics.jsonl that is a link was followed.",
        "tests/common/workdir/test_writers.py::test_a_link_is_replaced_and_never_followed",
    ),
    (
        "run.json with values of the wrong kind ended the run that continues.",
        "tests/common/workdir/test_record.py::test_a_record_that_makes_no_sense_is_none",
    ),
    (
        "Figures of a run that make no sense gave KeyError, TypeError and OverflowError in place of a page.",
        "tests/common/run_page/test_page.py::test_figures_that_make_no_sense_are_named",
    ),
    (
        "A confusion of 90,000 classes in run.json filled the memory.",
        "tests/common/run_page/test_page.py::test_a_confusion_of_more_classes_than_can_be_shown_is_left_out",
    ),
    (
        "A report of parity with values of the wrong kind was read, and failed when it was shown.",
        "tests/parity/report/test_report.py::test_a_report_that_makes_no_sense_is_named",
    ),
    (
        "A file that is no report was not named.",
        "tests/parity/report/test_report.py::test_a_file_that_is_no_report_is_named",
    ),
    (
        "Damaged figures of a survey gave a KeyError.",
        "tests/t2t_parity/test_survey.py::test_figures_that_make_no_sense_are_named",
    ),
    (
        "Brackets without end in a file of class names gave a RecursionError.",
        "tests/config/test_class_names.py::test_brackets_without_end",
    ),
    (
        "A .pth of 250 KB with tuples in tuples as a key ended the process: their hash takes a frame of C for each.",
        "tests/torch/weights/test_safe_unpickle.py::test_a_key_of_tuples_in_tuples",
    ),
    (
        "A pickle set attributes of argparse.Namespace and of functions, for everybody in the process.",
        "tests/torch/weights/test_safe_unpickle.py::test_a_refused_pickle_changes_no_class_and_no_function",
    ),
    (
        "A label map could do both.",
        "tests/common/data/readers/test_torch_tensor.py::test_what_would_end_or_change_the_process",
    ),
    (
        "Of a zip with two central directories PyTorch unpacked another one than was checked: some hundred bytes took "
        "gigabytes.",
        "tests/torch/weights/test_unpickle_preview.py::test_a_second_directory_with_a_bomb",
    ),
    (
        "PyTorch's reader found one record under many spellings, each a copy of its own.",
        "tests/torch/weights/test_unpickle_preview.py::test_one_record_in_many_spellings",
    ),
    (
        "A checkpoint called what takes memory at a word: a tensor class with a size, a copy of an expanded tensor, a "
        "list made a dictionary again and again.",
        "tests/torch/weights/test_unpickle_preview.py::test_a_call_that_takes_more_than_the_file_is_refused_before_it_is_made",
    ),
    (
        "A file before PyTorch 1.6 that left out the numbers of a storage was loaded with what lay in the memory.",
        "tests/torch/weights/test_unpickle_preview.py::test_a_legacy_file_without_the_numbers_of_a_storage",
    ),
    (
        "Sparse tensors of a refused file could make PyTorch refuse the next one.",
        "tests/torch/weights/test_unpickle_preview.py::test_a_refused_file_leaves_no_sparse_tensor_for_the_next_one",
    ),
    (
        "An answer in chunks without end was written until the disk was full, whatever size was known.",
        "tests/config/weights/test_download.py::test_an_answer_without_end_stops_at_the_size_that_is_known",
    ),
    (
        "A server whose file changed at each question was asked for ever.",
        "tests/config/weights/test_download.py::test_a_file_that_changes_again_and_again_ends",
    ),
    (
        "A download was led to ftp: addresses, and file: could be asked for.",
        "tests/config/weights/test_download.py::test_a_redirect_elsewhere_is_one_line",
    ),
    (
        "A hub's commit or ETag of ../../.. made folders outside of the cache.",
        "tests/config/weights/test_hub_names.py::test_a_name_that_is_no_name_is_refused",
    ),
    (
        "run.json with brackets 900 deep was read, and ended the run that continues when it was written again.",
        "tests/common/workdir/test_record.py::test_a_file_that_makes_no_sense_is_as_none",
    ),
    (
        "Of a tar shard that was cut off between two members, or had a damaged header, the rest was left out without a "
        "word.",
        "tests/common/data/readers/test_tar.py::test_a_tar_cut_anywhere_is_refused",
    ),
    (
        "Names of class folders with escape sequences, line breaks or bytes that are no UTF-8 went to the terminal as "
        "they are, and kept the page of the run from being written.",
        "tests/common/data/test_folders.py::test_names_that_cannot_be_printed",
    ),
    (
        "A name in brackets was read as markup: bad[copy].jpg was told as bad.jpg.",
        "tests/common/io/test_terminal.py::test_a_run_says_names_as_they_are",
    ),
)

DEFECTS = tuple(Defect(what, test) for what, test in _FOUND)

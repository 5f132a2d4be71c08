"""What AlignDet adds to plain detection, in three groups.

The method: `box_domain` (one step of box-domain pre-training), `adapters` (one per detector),
`projectors`, `feature_scale`, `momentum`; `transfer` (from pre-training to fine-tuning), with
`published_detr`; `image_domain` with its methods `moco`, `simmim` (with `reconstructions`) and
`supervised`; `fine_tuning`.

The run: `config` (with `overrides` and `strict_yaml`), `optim` (with `parameter_groups`),
`checkpoint`, `saved_content`, `last_checkpoint`, `resumable`, `best_weights`, `run_directory`,
`event_files`, `run_lock`, `former_run`, `skipped_images`, `start_block`, `dist`, `amp`,
`compiling`, `determinism`, `nonfinite`, `health`, `evaluate` (with `coco_scores`, `mask_evaluation`
and `mask_results`), `cli`, which the scripts share, and `siblings`, which finds foreign packages
called like ours.

The tools: `predict` (with `image_inputs` and `prediction_files`), `visual`, `probe`, `export` (with
`export_graph`, `export_steps`, `export_formats` and `export_check`), `export_backbone`, `demo`;
`report` (with `run_files`, `verdict`, `reading_curves`, `charts`, `markup`, `precision_curves`,
`report_errors`, `report_pictures` and `report_proposals`); `errors` (with `detection_errors`,
`error_kinds`, `error_costs` and `error_pictures`); `replay` (with `first_nonfinite`); `check_data`
(behind `python -m data.check`) with `refused`, `positives` and `data_page`; `cluster_command`
(behind `python -m data.clusters`) with `cluster_options` and `cluster_sheet`, `clusters` (with
`cluster_state`), `box_features`, `kmeans`; `shadowed`, which explains packages of others that are
called like ours.
"""

from aligndet.siblings import require_siblings

require_siblings()

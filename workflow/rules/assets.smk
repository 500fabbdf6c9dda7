# Fetch and verify models, texts and tasks. asset.json is written last, so it stands for the whole folder.


rule asset_model:
    input:
        lambda wildcards: cluster.watched_files(EXPERIMENT.models[wildcards.model]),
    output:
        MODEL.manifest,
    log:
        log_of("asset/model", "{model}"),
    benchmark:
        benchmark_of("asset/model", "{model}")
    localrule: True
    conda:
        ENV
    params:
        kind="model",
        config=uncompared(lambda wildcards: EXPERIMENT.entry("models", wildcards.model)),
        out=subpath(output[0], parent=True),
        settings=lambda wildcards: as_json(asset_settings(EXPERIMENT.models[wildcards.model])),
    message:
        "fetch {params.out}"
    shell:
        "ffp asset {params.kind} --config {params.config:q} --out {params.out:q} > {log:q} 2>&1"


use rule asset_model as asset_text with:
    input:
        lambda wildcards: cluster.watched_files(EXPERIMENT.texts[wildcards.text]),
    output:
        TEXT.manifest,
    log:
        log_of("asset/text", "{text}"),
    benchmark:
        benchmark_of("asset/text", "{text}")
    localrule: True
    params:
        kind="text",
        config=uncompared(lambda wildcards: EXPERIMENT.entry("texts", wildcards.text)),
        out=subpath(output[0], parent=True),
        settings=lambda wildcards: as_json(asset_settings(EXPERIMENT.texts[wildcards.text])),


use rule asset_model as asset_tasks with:
    input:
        lambda wildcards: cluster.watched_files(EXPERIMENT.tasks),
    output:
        TASKS.manifest,
    log:
        log_of("asset/tasks", "{tasks}"),
    benchmark:
        benchmark_of("asset/tasks", "{tasks}")
    localrule: True
    params:
        kind="tasks" if isinstance(GRID.tasks, str) else "grid-tasks",
        config=uncompared(
            lambda wildcards: EXPERIMENT.entry("tasks", GRID.tasks) if isinstance(GRID.tasks, str) else EXPERIMENT.file
        ),
        out=subpath(output[0], parent=True),
        settings=lambda wildcards: as_json(asset_settings(EXPERIMENT.tasks)),

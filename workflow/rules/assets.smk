# Fetch and verify models, texts and tasks. asset.json is written last and stands for the whole folder.


rule asset_model:
    input:
        lambda wildcards: local_files([EXPERIMENT.models[wildcards.model]]),
    output:
        MODEL,
    log:
        "logs/asset/model/{model}.log",
    benchmark:
        "logs/asset/model/{model}.benchmark.tsv"
    localrule: True
    conda:
        ENV
    params:
        config=f"{CONFIG}/models/{{model}}.yaml",
        out=subpath(output[0], parent=True),
        settings=lambda wildcards: asset_settings(EXPERIMENT.models[wildcards.model], include={"source"}),
    shell:
        """
        ffp asset model \
            --config {params.config:q} \
            --out {params.out:q} \
            2>&1 | tee {log:q}
        """


rule asset_text:
    input:
        local_files(EXPERIMENT.text.sources),
    output:
        TEXT,
    log:
        "logs/asset/text/{text}.log",
    benchmark:
        "logs/asset/text/{text}.benchmark.tsv"
    localrule: True
    conda:
        ENV
    params:
        config=f"{CONFIG}/texts/{{text}}.yaml",
        out=subpath(output[0], parent=True),
        settings=asset_settings(EXPERIMENT.text, exclude={"title"}),
    shell:
        """
        ffp asset text \
            --config {params.config:q} \
            --out {params.out:q} \
            2>&1 | tee {log:q}
        """


rule asset_tasks:
    input:
        lambda wildcards: local_files(EXPERIMENT.tasks.tasks.values()),
    output:
        TASKS,
    log:
        "logs/asset/tasks/{tasks}.log",
    benchmark:
        "logs/asset/tasks/{tasks}.benchmark.tsv"
    localrule: True
    conda:
        ENV
    params:
        config=f"{CONFIG}/tasks/{{tasks}}.yaml",
        out=subpath(output[0], parent=True),
        settings=lambda wildcards: asset_settings(EXPERIMENT.tasks, exclude={"title"}),
    shell:
        """
        ffp asset tasks \
            --config {params.config:q} \
            --out {params.out:q} \
            2>&1 | tee {log:q}
        """

# One tiny job of each kind and model, with all that the real ones ask for; `ffp site` runs them one by one.


rule site_search:
    output:
        LAYOUT.probe("{model}", "search"),
    log:
        log_of("site", "{model}/search"),
    conda:
        ENV
    threads: THREADS
    resources:
        **SEARCH_RESOURCES,
    params:
        grid=str(EXPERIMENT.file),
    message:
        "probe {output}"
    shell:
        "ffp probe --config {params.grid:q} --model {wildcards.model:q} --out {output:q} >{log:q} 2>&1"


use rule site_search as site_score with:
    output:
        LAYOUT.probe("{model}", "score"),
    log:
        log_of("site", "{model}/score"),
    resources:
        **SCORE_RESOURCES,

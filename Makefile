# Every way to use this project by name: `make help` lists them. CI runs the same targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# ---- settings for the command line, as in make stage1 LIMIT=500; those with ?= also from the environment, or .env -----------

PROFILE ?=## model and data: a name in jobs/profiles, or the path of a YAML file; without it embedded
LIMIT   =## items a task
SUITE   =## which tasks a stage trains for and scores: short (the default), reading, lookup; docs/suites.md
ORDER   =## of the parts of a prompt: context_first, question_first, or repeat (the prompt twice)
CAMPAIGN =## a matrix of runs for `make campaign`: a name in jobs/campaigns, or the path of a YAML file
RECIPE  =## how a stage trains: a name in jobs/recipes, such as lora-mas
SEED    =## in place of the stage's seed
SET     =## keys to override, such as SET="train.max_steps=20 train.batch_size=8"
FORCE   =## 1: run a stage again although it is complete
RESUME  =## 1: resume the newest unfinished run; with several stages, as in make demo, also start those that have none
RUNS    ?=## where results are kept; without it $PREFILL_RUNS, or runs
COMPARE =## two runs for `make report`, in place of all stages
RUNNER  ?= auto## how stages run: docker, native (in .venv), or auto: docker if an engine answers and no PYTHON is given, else native
GPU     ?=## what a container sees: auto (the default), none, all, or numbers such as 0,1
IMAGE   ?=## the image to run or to push; without it prefill:local, rebuilt whenever the code has changed
VARIANT ?=## of the image: cuda, compat (cuda for older drivers too) or cpu; without it cpu where WHEELS_IMAGE or PIP_CONF is given, else cuda
MOUNTS  ?=## directories outside the repository that a profile names, for containers
COMPRESSION ?=## of the layers that `make push` sends: gzip (the default), or zstd where the engine can
PYTHON  = .venv/bin/python## an interpreter that has everything, in place of .venv
ARGS    =## more arguments for the command of a target: pytest, a benchmark, report, vast-up, such as ARGS="-k mask -x" or ARGS="--max-cost 12 --yes"
OLDEST  =## 1: test-zoo and docs-models with the oldest transformers that is supported, in place of the newest
FUZZ    =## inputs of each kind that `make fuzz` tries; without it 10000
BASE    =## a commit that `make bench-stages` compares with
DEVICE  =## a benchmark's device: cpu or cuda; without it a GPU if there is one
STAGE   =## the stage that vast-up runs
ON      =## the engine of `make submit`: slurm, skypilot, dstack or kubernetes
NODES   =## machines of a submitted stage
GPUS    =## GPUs of each of these machines; without it the profile's
SEEDS   =## runs of a submitted stage, such as 0,1,2: an array of Slurm
SHARED  =## the storage that these machines share, by the engine's name: a volume, a bucket, a claim
GPU_NAME ?=## the GPU of a rented machine, such as A100_SXM4; without it any that fits
TRACKER = tensorboard## what `make track` opens: tensorboard or trackio
RUN     =## a rented run, without it the open one; for serve and publish a run or stage, such as stage3b
TO      =## where `make publish` sends the run: OWNER/NAME on the hub
PRIVATE =## 1: in a private repository
DRY_RUN =## 1: show what would be done and do nothing: campaign (hours and dollars), submit (the engine's file), publish (card and files)
MASK    =## how `make serve` reads prompts: causal, prefix or segment; without it as the model was trained

# A misspelt variable would be passed over without a word. Names of two words are the environment's: HF_TOKEN=...
VARIABLES := $(shell sed -n 's/^\([A-Z_]*\) *?*=.*##.*/\1/p' $(firstword $(MAKEFILE_LIST))) CI COLUMNS HOME LANG PATH TERM TMPDIR
given = $(and $(filter command,$(firstword $(origin $(1)))),$(if $(findstring _,$(1)),,$(1)))
MISSPELT := $(filter-out $(VARIABLES),$(foreach one,$(.VARIABLES),$(call given,$(one))))
ifneq ($(MISSPELT),)
$(error $(firstword $(MISSPELT)): no such variable; make help-all lists them)
endif

# A stage is a file: jobs/NAME.yaml makes the target NAME.
STAGES := $(filter-out reference,$(basename $(notdir $(wildcard jobs/*.yaml))))

# ---- which interpreter, which runner ------------------------------------------------------------------------------------

# An interpreter given as PYTHON needs no set-up.
ifeq ($(PYTHON),.venv/bin/python)
VENV := .venv/.base
DEV  := .venv/.dev
SERVE := .venv/.serve
VASTAI := .venv/.vastai/.done
ENGINES := .venv/.engines/.done .venv/.trackers/.done
endif
MUTMUT := .venv/.mutmut/.done
OLDEST_DONE := .venv/.oldest/.done

ifeq ($(filter auto docker native,$(RUNNER)),)
$(error RUNNER=$(RUNNER): no such runner; expected docker, native or auto)
endif

# Compose and the scripts under container/ read .env too. The command line wins over the environment, and that over .env.
setting = $(or $($(1)),$(shell . container/dotenv.sh && dotenv "$${ENV_FILE:-.env}" && printf '%s' "$${$(1):-}")$(readable))
readable = $(if $(filter-out 0,$(.SHELLSTATUS)),$(error .env cannot be read, see above))
asked := $(call setting,PROFILE)
PROFILE := $(or $(asked),embedded)
RUNS := $(call setting,RUNS)

# With PYTHON given, auto is native. A runner has a command that comes before `run STAGE`, and a prerequisite. make asks for the
# engine once, and only when a stage is to run.
answering = $(eval answering := $$(shell timeout 5 docker info >/dev/null 2>&1 && echo docker || echo native))$(answering)
engine = $(if $(VENV),$(answering),native)
runner = $(if $(filter auto,$(RUNNER)),$(1),$(RUNNER))
export COMPRESSION GPU IMAGE MOUNTS VARIANT
docker_app = RUNS='$(or $(RUNS),$(PREFILL_RUNS),runs)' container/run.sh
native_app = $(PYTHON) -m app
docker_ready = container/image.sh ready
native_ready = $(if $(VENV),$(MAKE) --silent $(VENV))
docker_says = running in a container; RUNNER=native runs in .venv
native_says = $(if $(VENV),no container engine answers: running in .venv,running with $(PYTHON)); RUNNER=docker runs in a container
# $(call app,RUNNER), $(call ready,RUNNER)
app = $($(1)_app)
ready = $($(1)_ready)

# ---- the arguments of a stage -------------------------------------------------------------------------------------------

# A container has the directory mounted, so only a native run needs its name.
runs_dir = $(if $(filter native,$(1)),$(if $(RUNS),--runs-dir '$(RUNS)'))
on = $(filter-out 0 no false,$($(1)))
sets = $(foreach pair,$(1),--set '$(pair)')
named = $(SUITE:%=suite=%) $(ORDER:%=order=%) $(RECIPE:%=recipe=%)
common = --profile '$(PROFILE)' $(call runs_dir,$(1)) $(if $(SEED),--seed $(SEED)) \
         $(call sets,$(named)) $(if $(call on,FORCE),--force) $(if $(call on,RESUME),$(resume))
# Of several stages at most one is unfinished: the others are complete, or start.
several = $(filter demo,$(MAKECMDGOALS))$(word 2,$(filter $(STAGES),$(MAKECMDGOALS)))
resume = $(if $(several),--continue,--resume)
stage_words = $(call common,$(1)) $(if $(LIMIT),--limit $(LIMIT)) $(call sets,$(SET))
# Before minutes of building an image, an existing and current .venv checks the arguments.
docker_check = [ ! -e .venv/.base ] || [ .venv/.base -ot requirements/base.lock ] || .venv/bin/python -m app check $(1) >/dev/null

# ---- targets --------------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: ## The whole experiment in small, with its report: ten minutes
	@$(call ready,$(call runner,native))
	@$(call app,$(call runner,native)) demo $(call stage_words,$(call runner,native))

.PHONY: $(STAGES)
$(STAGES):
	@$(if $(filter auto,$(RUNNER)),echo '$($(engine)_says)' >&2)
	@$(call $(call runner,$(engine))_check,$@ $(call stage_words,docker))
	@$(call ready,$(call runner,$(engine)))
	@$(call app,$(call runner,$(engine))) run $@ $(call stage_words,$(call runner,$(engine)))

# Beside a campaign they would be passed over without a word.
OF_CAMPAIGN := PROFILE LIMIT SEED SUITE ORDER RECIPE SET FORCE
named_campaign = '$(1)'$(foreach one,$(OF_CAMPAIGN),$(if $(filter command,$(origin $(one))),$(error $(one): \
  a campaign has its own; change it in a copy of the campaign file, and name that: CAMPAIGN=mine.yaml)))
.PHONY: campaign
campaign: ## A matrix of runs: CAMPAIGN=lookup; DRY_RUN=1: its cost
	@$(call ready,$(call runner,native))
	@$(call app,$(call runner,native)) campaign $(call named_campaign,$(call needed,CAMPAIGN,$(CAMPAIGN),lookup)) $(call runs_dir,$(call runner,native)) $(if $(call on,DRY_RUN),--plan) $(ARGS)

.PHONY: serve publish
publish: $(VENV) ## Send a finished run to the hub: make publish RUN=stage3b TO=me/name; docs/publish.md
	@$(PYTHON) -m app publish '$(call needed,RUN,$(RUN),stage3b)' --to '$(call needed,TO,$(TO),me/name)' --profile '$(PROFILE)' \
	  $(call runs_dir,native) $(if $(call on,PRIVATE),--private) $(if $(call on,DRY_RUN),--dry-run) $(if $(call on,FORCE),--force) $(ARGS)
serve: $(VENV) $(SERVE) ## Answer requests in OpenAI's form at http://127.0.0.1:8001/v1: make serve RUN=stage3b; docs/serve.md
	@$(PYTHON) -m app serve --profile '$(PROFILE)' $(call runs_dir,native) $(if $(RUN),--model '$(RUN)') $(if $(MASK),--mask '$(MASK)') $(ARGS)

.PHONY: doctor preview report runs power status track samples results
doctor: ## What this machine lacks, and how to get it
	@$(if $(VENV),$(if $(wildcard $(PYTHON)),$(PYTHON),python3),$(PYTHON)) -m app doctor $(call runs_dir,native) $(ARGS)
preview: ## Three examples of the training data as STAGE (stage3b) trains on them, with what is learnt marked
	@$(call ready,$(call runner,native))
	@$(call app,$(call runner,native)) preview $(or $(STAGE),stage3b) --profile '$(PROFILE)' $(call sets,$(named) $(SET)) $(ARGS)
samples: ## The answers of base, control and finetuned model to 24 prompts, side by side: runs/samples.html
	@$(call ready,$(call runner,native))
	@$(call app,$(call runner,native)) samples $(call runs_dir,$(call runner,native)) --profile '$(PROFILE)' $(ARGS)
track: $(VENV) ## Open what `report_to` has kept here; TRACKER=trackio for Trackio's part
	@case '$(TRACKER)' in tensorboard|trackio) ;; *) \
	  echo 'error: TRACKER=$(TRACKER): cannot be opened here; expected tensorboard or trackio, see docs/using.md, Trackers' >&2; exit 2;; esac; \
	kept='$(or $(RUNS),$(PREFILL_RUNS),runs)/tracking/$(TRACKER)'; [ -d "$$kept" ] || \
	  { echo "error: $$kept: no such directory, so nothing was tracked there; run a stage with SET=\"report_to=[$(TRACKER)]\"" >&2; exit 2; }; \
	case '$(TRACKER)' in \
	  tensorboard) $(PYTHON) -m tensorboard.main --logdir "$$kept" $(ARGS);; \
	  trackio) TRACKIO_DIR="$$kept" $(PYTHON) -c 'import trackio; trackio.show(project="prefill")';; \
	esac
# Without PROFILE: that of the newest run.
of_profile = $(if $(asked),--profile '$(asked)')
report: ## Print the results; write runs/report.md and report.html
	@$(call ready,$(call runner,native))
	@$(call app,$(call runner,native)) report $(call runs_dir,$(call runner,native)) $(of_profile) $(if $(COMPARE),--compare $(COMPARE)) $(ARGS)
runs: ## List runs with their state and result
	@$(call ready,$(call runner,native))
	@$(call app,$(call runner,native)) runs $(call runs_dir,$(call runner,native))

results: ## Rebuild the tables and plots of docs/results; make results CAMPAIGN=lookup first takes them from the runs directory
	@$(call ready,native)
	@$(native_app) results $(if $(CAMPAIGN),'$(CAMPAIGN)' --collect) $(call runs_dir,native) $(ARGS)

power: ## The smallest difference that the items and seeds of the runs can show
	@$(call ready,$(call runner,native))
	@$(call app,$(call runner,native)) power $(call runs_dir,$(call runner,native)) $(of_profile) $(ARGS)

status: $(VENV) ## What ran, what runs, what to do next; runs/status.html
	@$(call vast,overview) --html '$(or $(RUNS),$(PREFILL_RUNS),runs)/status.html'

# The supervisor runs in .venv; IMAGE is the image that `make push` has pushed. See docs/vast.md.
vast = $(PYTHON) -m vast $(1) $(if $(RUNS),--runs-dir '$(RUNS)')
needed = $(or $(2),$(error $(1) is needed, as in make $@ $(1)=$(3)))

.PHONY: vast-up vast-status vast-down vast-reap vast-contract vast-drill
vast-up: $(VENV) ## Run on a rented GPU: STAGE=stage5b IMAGE=...; vast.md
	@$(call vast,up) $(if $(CAMPAIGN),$(call named_campaign,$(CAMPAIGN)),'$(call needed,STAGE,$(STAGE),stage5b)' --profile '$(PROFILE)') \
	  --image '$(call needed,IMAGE,$(call setting,IMAGE),registry/name:tag)' $(if $(GPU_NAME),--gpu '$(GPU_NAME)') \
	  $(if $(LIMIT),--limit $(LIMIT)) $(if $(SEED),--seed $(SEED)) $(call sets,$(named) $(SET)) $(if $(call on,FORCE),--force) $(ARGS)
vast-status: $(VENV) ## Rented runs, from the files kept here
	@$(call vast,status) $(ARGS)
vast-down: $(VENV) ## End a rented run, and destroy its machine: make vast-down RUN=stage5b-20261123-101500-3f9a
	@$(call vast,down) $(RUN) $(ARGS)
vast-reap: $(VENV) ## Destroy our machines that no supervisor looks after; for cron
	@$(call vast,reap) $(ARGS)
vast-drill: $(VENV) ## Try the live market for a few cents, at most 2 dollars, and compare it with what we assume: make vast-drill IMAGE=registry/name:tag
	@$(call vast,drill) --image '$(call needed,IMAGE,$(call setting,IMAGE),registry/name:tag)' $(ARGS)
vast-contract: $(DEV) ## Compare the live market with what our client assumes: reads only, and needs a key
	@VAST_CONTRACT=1 $(PYTHON) -m pytest -q -rs tests/vast/marketplace/test_live_service.py $(ARGS)

.PHONY: submit
submit: $(VENV) ## Run on a cluster: STAGE=stage5b ON=slurm; ecosystem.md
	@$(PYTHON) -m jobs.submit $(if $(CAMPAIGN),$(call named_campaign,$(CAMPAIGN)),'$(call needed,STAGE,$(STAGE),stage5b)' --profile '$(PROFILE)') --on '$(call needed,ON,$(ON),slurm)' \
	  $(if $(RUNS),--runs-dir '$(RUNS)') $(if $(NODES),--nodes $(NODES)) $(if $(GPUS),--gpus $(GPUS)) $(if $(GPU_NAME),--gpu '$(GPU_NAME)') \
	  $(if $(LIMIT),--limit $(LIMIT)) $(if $(SEEDS)$(SEED),--seeds $(or $(SEEDS),$(SEED))) $(if $(call setting,IMAGE),--image '$(call setting,IMAGE)') \
	  $(if $(SHARED),--shared '$(SHARED)') $(if $(call on,DRY_RUN),--dry-run) $(call sets,$(named) $(SET)) $(ARGS)

.PHONY: image push image-size sbom audit
image: ## Build the container image; BASE_IMAGE, WHEELS_IMAGE and PIP_CONF set its sources
	@container/image.sh build
push: ## Push it: make push IMAGE=registry/name:tag; prints the digest
	@container/image.sh push
image-size: image ## The image's size by part; fails above the limit
	@container/image.sh size
sbom: ## Write runs/sbom.json, the packages of the image as CycloneDX
	@container/image.sh sbom > runs/sbom.json.part && mv runs/sbom.json.part runs/sbom.json && echo 'wrote runs/sbom.json'
audit: ## Ask the package index for known vulnerabilities of the image's packages
	@container/image.sh audit

.PHONY: test test-containers test-engines test-slurm test-gpu test-zoo fuzz golden
# What is compiled is kept also where the environment forbids it: else each worker, and each process of a test, compiles anew.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest
test: $(DEV) $(VASTAI) ## The tests; none of them needs a GPU
	$(PYTEST) -n logical --maxprocesses 8 --dist worksteal -m 'not gpu and not containers and not engines and not slurm and not zoo' $(ARGS)
# More workers than cores: the tests wait a lot. tests/containers/conftest.py divides the tests among workers.
test-containers: $(DEV) ## The tests that need a container engine; they build the image
	$(PYTHON) -m pytest -n 3 --no-loadscope-reorder -m containers tests/containers $(ARGS)
test-engines: $(DEV) $(ENGINES) ## The files for SkyPilot, dstack and Kubernetes, and what trackers keep, read by their own packages
	$(PYTEST) -m engines tests/engines $(ARGS)
test-slurm: $(DEV) ## Stages on a Slurm cluster of two nodes; SLURM_TEST_CLUSTER names the program that starts one
	$(PYTEST) -m slurm tests/slurm $(ARGS)
test-gpu: $(DEV) ## The tests that need a GPU; PYTHON=python3 to use an interpreter that has torch already
	$(PYTHON) -m pytest -m gpu $$(grep -rl --include='*.py' 'mark\.gpu' tests) $(ARGS)
test-zoo: $(DEV) $(if $(OLDEST),$(OLDEST_DONE)) ## Every causal language model of transformers, tiny: refused in one line, or right; minutes
	$(if $(OLDEST),PYTHONPATH=.venv/.oldest) $(PYTEST) -n logical --maxprocesses 8 --dist worksteal -m zoo tests/app/test_zoo.py tests/app/model/test_gemma.py $(ARGS)
fuzz: $(DEV) ## Inputs that nobody thought of: YAML, policies, data, pairs, run directories; FUZZ=10000 of each kind
	FUZZ=$(or $(FUZZ),10000) $(PYTEST) -n logical --maxprocesses 8 --timeout 0 tests/test_fuzz.py tests/test_fuzz_files.py $(ARGS)
golden: $(DEV) ## Rewrite the golden files of the tests; review the diff
	GOLDEN=1 $(PYTEST) -m golden $(ARGS)

.PHONY: mutants
mutants: $(DEV) $(MUTMUT) ## Break the judgement line by line and list the changes that no test notices: hours; ARGS="'vast.supervisor.decide*'" for a part. See docs/mutants.md
	PYTHONPATH=.venv/.mutmut OMP_NUM_THREADS=1 $(PYTHON) -m mutmut run $(ARGS)
	@PYTHONPATH=.venv/.mutmut $(PYTHON) -m mutmut results

.PHONY: bench-all bench-stages bench-score bench-train bench-gpus
bench-stages: $(DEV) ## The real stages of PROFILE at their own settings, by phase; against a commit: make bench-stages BASE=HEAD~1
	$(PYTHON) -m benchmarks.stages $(if $(findstring --shape,$(ARGS)),,$(of_profile)) $(if $(LIMIT),--limit $(LIMIT)) $(call sets,$(SET)) $(if $(BASE),--base '$(BASE)') $(ARGS)
bench-train: $(DEV) ## Training speed: prefix, causal, the reference's way, padded batches; writes runs/bench-train.json
	$(PYTHON) -m benchmarks.train $(if $(DEVICE),--device $(DEVICE)) $(ARGS)
bench-score: $(DEV) ## Scoring speed against one sequence at a time and lm-evaluation-harness; writes runs/bench-score.json
	$(PYTHON) -m benchmarks.score $(if $(DEVICE),--device $(DEVICE)) $(ARGS)
bench-all: $(DEV) ## What is open on a GPU, in one call of under eight minutes: whole experiment, exact scoring, 3B, LoRA, KL; ARGS=--peers adds others
	$(PYTHON) -m benchmarks.one_call $(ARGS)
bench-gpus: $(DEV) ## One GPU against several: tokens/s and equal losses
	$(PYTHON) -m benchmarks.gpus $(ARGS)

.PHONY: check docs docs-models
check: $(DEV) ## ruff, mypy, import contracts, links and commands in the docs
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as run; run(["--no-logo"])'
	$(PYTHON) -m pytest -q tests/test_docs.py
docs: $(DEV) ## Rewrite docs/cli.md from the commands' help
	$(PYTHON) -m docs.generate_cli
docs-models: $(DEV) $(if $(OLDEST),$(OLDEST_DONE)) ## Write docs/models.md anew: which models are right, which are refused; minutes
	$(if $(OLDEST),PYTHONPATH=.venv/.oldest) $(PYTHON) -m docs.generate_models

.PHONY: setup lock clean help help-all
setup: .venv/.dev ## Make .venv with the packages for runs, tests and checks
lock: ## Resolve pyproject.toml and pin the versions in requirements/*.lock
	@$(find_python); "$$python" requirements/lock.py
clean: ## Remove .venv and caches; results in runs/ stay
	rm -rf .venv mutants .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
FIRST := demo stage1 doctor campaign status report submit vast-up test setup
# Lines for people: on a terminal broken between words, the rest below its text; in a file each is one. $(call wrapped,COLUMN)
wrapped = { [ ! -t 1 ] || width="$${COLUMNS:-$$(tput cols 2>/dev/null || echo 80)}"; awk -v at=$(1) -v width="$${width:-100000}" '{ \
  while (length($$0) > width && match(substr($$0, at + 1, width - at + 1), / [^ ]*$$/)) { \
    print substr($$0, 1, at + RSTART - 1); $$0 = substr(sprintf("%40s", ""), 1, at) substr($$0, at + RSTART + 1) } print }'; }
help: ## The targets to begin with
	@{ $(foreach target,$(FIRST),$(if $(filter $(target),$(STAGES)),\
	  printf '  make %-15s %s\n' $(target) "One stage of eight: make help-all lists them";,\
	  sed -n 's/^$(target):.*## /$(target)|/p' Makefile | awk -F '|' '{printf "  make %-15s %s\n", $$1, $$2}';)) \
	  echo '  make help-all        Every target and every setting'; } | $(call wrapped,23)
help-all: ## Every target, stage and setting
	@{ awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile; \
	  echo; echo 'Stages, each a file under jobs/:'; \
	  $(foreach stage,$(STAGES),printf '  make %-15s %s\n' $(stage) "$$(sed -n 's/^title: *//p' jobs/$(stage).yaml)";) } | $(call wrapped,23)
	@echo; echo 'Settings, as in make stage1 PROFILE=embedded LIMIT=500:'
	@sed -nE 's/^([A-Z_]+) *[?]?= *(.*)## (.*)/\1|\3|\2/p' Makefile | \
	  awk -F '|' '{printf "  %-11s %s%s\n", $$1, $$2, $$3 == "" ? "" : "; default: " $$3}' | $(call wrapped,14)

# ---- .venv ----------------------------------------------------------------------------------------------------------------

# The first Python that is new enough, can make environments, and is no stub that only prints that Python is not installed. 3.11
# comes first because the lock was resolved with it.
define find_python
python=; \
for name in $(BASE_PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
  if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$name"; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo 'error: no Python >= 3.11 with venv found; install one (on Debian: python3 and python3-venv), or name it with BASE_PYTHON=' >&2; exit 2; \
fi
endef

# The packages of a run come first, so that `make demo` does not wait for developers' tools.
.venv/.base: requirements/base.lock
	@$(find_python); echo "making .venv with $$python: a minute or two the first time"; "$$python" -m venv .venv
	@.venv/bin/python requirements/install.py $<
	@touch $@
# The official client of Vast.ai: tests compare our fake of its API with it; its pins conflict with ours.
# So do those of the engines whose parsers read what jobs/submit writes.
# The clients of trackers work in the same process as torch.
.venv/.trackers/.done: requirements/trackers.lock .venv/.base
	@rm -rf .venv/.trackers && .venv/bin/python -m venv .venv/.trackers
	@.venv/.trackers/bin/python -m pip install --disable-pip-version-check --progress-bar $(if $(CI),off,on) --no-deps -r $<
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(echo .venv/.trackers/lib/python3*/site-packages)/base.pth"
	@touch $@
.venv/.%/.done: requirements/%.lock .venv/.base
	@rm -rf .venv/.$* && .venv/bin/python -m venv .venv/.$*
	@.venv/.$*/bin/python -m pip install --disable-pip-version-check --progress-bar $(if $(CI),off,on) -r $<
	@touch $@
# The tool of `make mutants` runs in the tests' interpreter but is installed apart from its packages.
.venv/.mutmut/.done: requirements/mutmut.lock $(VENV)
	@rm -rf .venv/.mutmut && $(PYTHON) -m pip install --disable-pip-version-check --no-deps --target .venv/.mutmut -r $<
	@touch $@
# The oldest transformers that is supported, put before the newest.
$(OLDEST_DONE): requirements/oldest.lock $(VENV)
	@rm -rf .venv/.oldest && $(PYTHON) -m pip install --disable-pip-version-check --no-deps --target .venv/.oldest -r $<
	@touch $@
# The two packages of the extra `serve`; what they need is in base.lock.
.venv/.serve: requirements/dev.lock .venv/.base
	@.venv/bin/python -m pip install --quiet --no-deps $$(grep -E '^(starlette|uvicorn)==' $<)
	@touch $@
.venv/.dev: requirements/dev.lock .venv/.base
	@.venv/bin/python requirements/install.py $<
	@touch $@

# podspawn. `make help` lists the targets; each is one script in scripts/, where
# its first lines say what it does and who may run it.

.DEFAULT_GOAL := help
.PHONY: help up down test soak bench check build fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-7s %s\n' "$$name" "$$text"; done

up: ## set this machine up and run the main job once (root; minutes the first time)
	@scripts/up.sh

down: ## undo make up; PURGE=1 also removes caches, audit log and CA (root)
	@scripts/down.sh

test: ## run every test on real sshd, Docker and gVisor, in labs (root)
	@scripts/test.sh

soak: ## 1000 cycles of create, ssh and destroy, and what they leave behind (root)
	@scripts/soak.sh

bench: ## compare plain ssh, ssh into a sandbox and docker; writes bench/results.json (root)
	@bench/run.sh

check: ## format, vet, staticcheck, import directions, documents, scripts
	@scripts/check.sh

build: ## build the three programs into bin/
	@scripts/build.sh

fuzz: ## run each fuzz test; SECONDS=60
	@scripts/fuzz.sh $(SECONDS)

clean: ## remove what was built here (not the caches of the machine)
	rm -rf bin .cache bench/results.json

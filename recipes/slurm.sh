#!/bin/bash
# privft on Slurm: one job, one torchrun on each node, one rank on each GPU.
#
#   sbatch --nodes=4 recipes/slurm.sh /local/ward /local/run.plan
#   sbatch --nodes=4 recipes/slurm.sh /local/ward /local/run.plan r-0001-...    goes on with a run
#
# What each node needs, before the job:
#   - at these paths the plan and a workspace folder of its own, a copy with the same vault, whose
#     ledger.json names the shared PostgreSQL ledger (README, "More than one machine")
#   - $HOME/privft/HOSTNAME.key, mode 0400: the key of that host's own recipient of the vault
#   - $HOME/privft/ledger.password, mode 0400, where the database asks for one
# The plan's config names the link between the nodes (`ranks.link`); if they know each other by
# other names on that link, set `head` to the first one's address there.
#
# Secrets are read from files, by path or file descriptor: none is in argv, and none in the
# environment, which Slurm would copy to every node and keep with the job's record.  A run that was
# stopped (time limit, lost node) is gone on with by hand: requeueing would start its plan a second
# time, which privft refuses, so it is off.

#SBATCH --job-name=privft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --export=NONE
#SBATCH --no-requeue
#SBATCH --output=privft-%j.log

set -euo pipefail
umask 077

workspace=${1:?the workspace folder}
plan=${2:?the plan}
run=${3:-}
gpus=${SLURM_GPUS_ON_NODE:?this script runs under sbatch}
keys=$HOME/privft
privft=$(command -v privft)

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# On each node, once, with Slurm's own variables and no others: whatever else it needs is an
# argument, and what stands in single quotes is expanded there and not here.
# shellcheck disable=SC2016
srun --export=NONE --kill-on-bad-exit=1 bash -c '
    set -euo pipefail
    umask 077
    privft=$1 workspace=$2 keys=$3 head=$4 port=$5 gpus=$6 plan=$7 run=$8
    what=("$plan")
    if [ -n "$run" ] && [ "$SLURM_NODEID" -eq 0 ]; then
        what=(--resume "$run")  # the others take part in whatever the first node does
    fi
    options=()
    if [ -e "$keys/ledger.password" ]; then
        exec 3< "$keys/ledger.password"
        options=(--ledger-password-fd 3)
    fi
    exec "$privft" --no-input --workspace "$workspace" "${options[@]}" \
        train "${what[@]}" --key "$keys/$(hostname -s).key" \
        --launcher torchrun -- \
        --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$gpus" \
        --master-addr "$head" --master-port "$port"
' privft "$privft" "$workspace" "$keys" "$head" "$port" "$gpus" "$plan" "$run"

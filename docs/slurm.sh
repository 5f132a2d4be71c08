#!/bin/bash
# One run on several machines under SLURM, which saves and queues again when its time is up or a
# more urgent job takes its machines:
#   sbatch docs/slurm.sh pretrain.py --config configs/coco_fcos_r50_pretrain.yaml
# Run it from the repository, with the environment activated; output_dir must be on shared storage.
#SBATCH --job-name=aligndet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# --ntasks-per-node: one torchrun per machine. --cpus-per-task: (1 + data.workers) x GPUs at least.
# --signal: 180 s before the end of --time, to this script; a step and a save must fit into them.

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs that share a machine need two ports

# A torchrun that ends must not take the others with it while they save; they end by themselves.
srun --kill-on-bad-exit=0 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:$port" \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    "$@" &
run=$!

stopped=
stop() {
    stopped=1
    kill -TERM "$run" # srun passes it on; every rank ends after the same step and saves
}
trap stop USR1 TERM

wait "$run"
status=$?
while kill -0 "$run" 2>/dev/null; do # a signal ends a wait early
    wait "$run"
    status=$?
done
if [ -n "$stopped" ]; then
    scontrol requeue "$SLURM_JOB_ID" # the same command goes on from last.pt
fi
exit "$status"

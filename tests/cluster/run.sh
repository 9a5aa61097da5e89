#!/usr/bin/env bash
# Does a sweep survive a real cluster?  A one-node Slurm on this machine: a sweep, one task cancelled in the middle, the
# sweep started again.  Needs root and Debian's packages: apt-get install slurm-wlm munge
#   tests/cluster/run.sh [python] [iclgd arguments, such as runtime.threads=1]
# With FAKE=1 the experiment is the fake of tests/support/fake_experiment, which needs no model.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(realpath -s "${1:-$root/.venv/bin/python}")
shift || true
for tool in munged slurmctld slurmd sbatch scancel; do
    command -v "$tool" > /dev/null || { echo "$tool is missing: apt-get install slurm-wlm munge" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "a one-node Slurm of one's own needs root" >&2; exit 2; }

state=$(mktemp -d /tmp/iclgd-slurm.XXXXXX)
chmod 755 "$state"
mkdir -p "$state"/{ctld,slurmd,log,work}
daemons=()
stop() {
    for _ in $(seq 40); do # a step that cannot report its end to slurmctld would wait for it forever
        scancel --user=root 2> /dev/null || true
        [ -z "$(squeue -h 2> /dev/null)" ] && break
        sleep 0.5
    done
    for daemon in "${daemons[@]}"; do kill "$daemon" 2> /dev/null || true; done
    wait 2> /dev/null || true
    [ -n "${KEEP:-}" ] && echo "kept: $state" || rm -rf "$state"
}
trap stop EXIT

# munge: who is who, by a key that only this test knows
head -c 1024 /dev/urandom > "$state/munge.key"
chmod 400 "$state/munge.key"
munged --foreground --force --key-file="$state/munge.key" --socket="$state/munge.socket" --pid-file="$state/munged.pid" \
    --log-file="$state/log/munged.log" --seed-file="$state/munge.seed" 2> "$state/log/munged.err" &
daemons+=($!)

# slurm: no cgroups, no accounting, everything in one folder
export SLURM_CONF="$state/slurm.conf"
cat > "$SLURM_CONF" << CONF
ClusterName=iclgd
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$state/munge.socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/slurmd
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=600
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
CONF
slurmctld -D -f "$SLURM_CONF" 2> "$state/log/slurmctld.err" &
daemons+=($!)
slurmd -D -f "$SLURM_CONF" 2> "$state/log/slurmd.err" &
daemons+=($!)
for _ in $(seq 60); do
    [ "$(sinfo -h -o %T 2> /dev/null)" = idle ] && break
    sleep 0.5
done
sinfo || { tail -n 20 "$state"/log/*; exit 1; }

export SUBMITIT_LOG_LEVEL=ERROR # or it would say at every look that there is no accounting
export PYTHONPATH="$root/src${FAKE:+:$root/tests/support/fake_experiment}" OMP_NUM_THREADS=1
arguments=(sweeps=smoke hydra/launcher=submitit_slurm hydra.launcher.cpus_per_task=1 hydra.launcher.mem_gb=null
    hydra.launcher.array_parallelism=1 hydra.launcher.timeout_min=20 tracking=none ${FAKE:+finetune.epochs=50} "$@")
sweep() { "$python" -m iclgd "${arguments[@]}"; }
outputs="$state/work/outputs/smoke"
cd "$state/work"

states() { grep -ho '"state": "[a-z]*"' "$outputs"/*/status.json 2> /dev/null | sort | uniq -c || true; }
done_runs() { grep -l '"state": "done"' "$outputs"/*/status.json 2> /dev/null | wc -l || true; }

echo "== first: a task is cancelled while it runs, once another is done"
sweep &
command=$!
while kill -0 "$command" 2> /dev/null; do # a task that was just ending when it was cancelled is done: take the next one
    running=$(grep -l '"state": "running"' "$outputs"/*/status.json 2> /dev/null | head -1 || true)
    task=$(squeue -h -t R -o %i | head -1)
    if [ -n "$running" ] && [ -n "$task" ] && [ "$(done_runs)" -ge 1 ]; then
        scancel "$task"
        while squeue -h -o %i 2> /dev/null | grep -qx "$task"; do sleep 0.2; done
        grep -q '"state": "done"' "$running" || { echo "cancelled $task ($running)"; break; }
    fi
    sleep 0.1
done
code=0
wait "$command" || code=$?
scancel --user=root # the command ends with the task that was cancelled; the others would go on
while [ -n "$(squeue -h)" ]; do sleep 0.5; done
"$python" -m iclgd.cli.status "$outputs"
finished=$(done_runs)
[ "$finished" -lt 4 ] || { echo "every task ended before it could be cancelled" >&2; states; exit 1; }
[ "$code" = 1 ] || { echo "the first sweep should end with 1, not $code" >&2; exit 1; }

echo "== again: only what was cancelled is computed"
sweep | tee "$state/again.log"
"$python" -m iclgd.cli.status "$outputs"
grep -q "$((4 - finished)) done, $finished skipped" "$state/again.log"
echo "== the cluster test passed"

#!/usr/bin/env bash
# A real Slurm on one Debian machine: four virtual nodes of two CPUs and two pretended GPUs each, with accounting.
#   cluster.sh up         install Debian's packages where they are missing, start everything (root; loopback only)
#   cluster.sh down       stop what `up` started, and remove its state
#   cluster.sh crash N    kill node N with all that runs on it;   cluster.sh revive N   start it again
# No systemd and no cgroups, so that it works in containers; what limits memory is a poll of each job's processes.
set -euo pipefail

ROOT=${SLURM_ROOT:-/var/tmp/ffp-slurm}
NODES=${NODES:-4} CPUS=${CPUS:-2} GPUS=${GPUS:-2} MEM_MB=${MEM_MB:-8000}
SELECT=${SELECT:-cons_tres} # or linear: whole nodes, and GPUs by --gres alone
PORT=${PORT:-16810} # the controller's; the database daemon, MariaDB and the nodes take the ones after it
CONF=/etc/slurm     # the plug-in unsets SLURM_CONF in its jobs, so that only the default place is found
PACKAGES=(slurmctld slurmd slurm-client slurmdbd munge mariadb-server)
SOCKET=/run/munge/ffp.socket
SQL=(--no-defaults --socket="$ROOT/db.socket")

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }
await() { for _ in $(seq 120); do "$@" >/dev/null 2>&1 && return; sleep 0.5; done; echo "timed out: $*" >&2; return 1; }
pidfile() { echo "$ROOT/run/$1.pid"; }

write_configuration() {
  mkdir -p "$ROOT"/{run,log,state,spool,dev} "$CONF"
  chmod 755 "$ROOT" "$ROOT"/*
  {
    cat <<EOF
ClusterName=ffp
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SOCKET
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$(pidfile slurmctld)
SlurmdPidFile=$ROOT/run/%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectType=select/$SELECT
SelectTypeParameters=$([ "$SELECT" = linear ] && echo CR_Memory || echo CR_Core_Memory)
DefMemPerCPU=500
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=15
KillWait=2
MinJobAge=3600
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$SOCKET
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=limits,qos
AccountingStoreFlags=job_comment
EOF
    for n in $(seq "$NODES"); do
      echo "NodeName=node$n NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 10 + n))" \
        "CPUs=$CPUS RealMemory=$MEM_MB Gres=gpu:pretended:$GPUS State=UNKNOWN"
    done
    echo "PartitionName=gpu Nodes=node[1-$NODES] Default=YES MaxTime=INFINITE State=UP"
    echo "PartitionName=short Nodes=node[1-$NODES] MaxTime=5 State=UP"
    echo "PartitionName=urgent Nodes=node[1-$NODES] PriorityTier=9 State=UP" # its jobs preempt those of the others
  } >"$ROOT/slurm.conf"
  for n in $(seq "$NODES"); do
    for g in $(seq 0 $((GPUS - 1))); do # a GPU has to be a device: these are copies of /dev/null
      [ -c "$ROOT/dev/node$n-$g" ] || mknod -m 666 "$ROOT/dev/node$n-$g" c 1 3
    done
    echo "NodeName=node$n Name=gpu Type=pretended File=$ROOT/dev/node$n-[0-$((GPUS - 1))]"
  done >"$ROOT/gres.conf"
  cat >"$ROOT/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$SOCKET
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 2))
StorageUser=slurm
StoragePass=slurm
LogFile=$ROOT/log/slurmdbd.log
PidFile=$(pidfile slurmdbd)
EOF
  chmod 600 "$ROOT/slurmdbd.conf"
  for name in slurm gres slurmdbd; do
    if [ -e "$CONF/$name.conf" ] && [ ! -L "$CONF/$name.conf" ]; then
      echo "this machine has a Slurm of its own ($CONF/$name.conf): leaving it alone" >&2
      exit 1
    fi
    ln -sfn "$ROOT/$name.conf" "$CONF/$name.conf"
  done
}

start_munge() {
  alive "$ROOT/munge/pid" && return
  mkdir -p "$ROOT/munge" /run/munge
  head -c 128 /dev/urandom >"$ROOT/munge/key"
  chown -R munge:munge "$ROOT/munge" /run/munge
  chmod 700 "$ROOT/munge" && chmod 400 "$ROOT/munge/key" && chmod 755 /run/munge
  rm -f "$SOCKET"*
  setpriv --reuid=munge --regid=munge --clear-groups munged --force --socket="$SOCKET" --key-file="$ROOT/munge/key" \
    --pid-file="$ROOT/munge/pid" --log-file="$ROOT/munge/log" --seed-file="$ROOT/munge/seed"
}

start_database() {
  if ! alive "$(pidfile mariadb)"; then
    mkdir -p "$ROOT/db" && chown mysql:mysql "$ROOT/db" "$ROOT/run" "$ROOT"
    [ -d "$ROOT/db/mysql" ] || mysql_install_db --no-defaults --user=mysql --datadir="$ROOT/db" --skip-test-db \
      --auth-root-authentication-method=socket >"$ROOT/log/mysql_install.log" 2>&1
    nohup mariadbd --no-defaults --user=mysql --datadir="$ROOT/db" --socket="$ROOT/db.socket" \
      --bind-address=127.0.0.1 --port=$((PORT + 2)) --pid-file="$(pidfile mariadb)" \
      --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 </dev/null >"$ROOT/log/mariadb.log" 2>&1 &
    await mysqladmin "${SQL[@]}" ping
  fi
  mysql "${SQL[@]}" -u root -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
    CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct_db.* TO slurm@localhost;
    CREATE USER IF NOT EXISTS slurm@127.0.0.1 IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct_db.* TO slurm@127.0.0.1;"
  alive "$(pidfile slurmdbd)" || slurmdbd
  await sacctmgr -n show cluster
  sacctmgr -in add cluster ffp >/dev/null 2>&1 || true
  sacctmgr -in add account default Description=tests Organization=tests >/dev/null 2>&1 || true
  sacctmgr -in add user root Account=default >/dev/null 2>&1 || true
  sacctmgr -in add qos narrow MaxWall=2 >/dev/null 2>&1 || true # longer jobs wait for ever
  sacctmgr -in modify user root set QOS=normal,narrow >/dev/null 2>&1 || true
}

all_up() { [ "$(sinfo -h -N -p gpu -o %T | grep -cE '^(idle|mixed|allocated)$')" = "$NODES" ]; }

up() {
  if ! dpkg -s "${PACKAGES[@]}" >/dev/null 2>&1; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"
    } >/dev/null || { echo "apt cannot install ${PACKAGES[*]} here"; exit 1; }
  fi
  write_configuration
  start_munge
  start_database
  alive "$(pidfile slurmctld)" || slurmctld
  for n in $(seq "$NODES"); do revive "node$n"; done
  await all_up
  sbatch -W -n1 --gres=gpu:1 -t 1 -o /dev/null --wrap true >/dev/null
  echo "Slurm is up: $NODES nodes, $CPUS CPUs and $GPUS pretended GPUs each"
}

revive() {
  mkdir -p "$ROOT/spool/$1"
  alive "$(pidfile "$1")" || slurmd -N "$1"
}

stop() { # PIDFILE NAME
  local pid
  pid=$(cat "$1" 2>/dev/null || true)
  [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 0
  kill "$pid"
  for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.25; done
  kill -9 "$pid"
}

down() {
  scancel -u root 2>/dev/null && sleep 2 || true
  for n in $(seq "$NODES"); do stop "$(pidfile "node$n")" slurmd; done
  stop "$(pidfile slurmctld)" slurmctld
  stop "$(pidfile slurmdbd)" slurmdbd
  stop "$(pidfile mariadb)" mariadbd
  stop "$ROOT/munge/pid" munged
  for name in slurm gres slurmdbd; do [ ! -L "$CONF/$name.conf" ] || rm "$CONF/$name.conf"; done
  rm -rf "$ROOT"
}

descendants() { # of a process, itself included
  local child
  for child in $(pgrep -P "$1" || true); do descendants "$child"; done
  echo "$1"
}

crash() {
  local victims job step
  victims=$(cat "$(pidfile "$1")")
  for job in $(squeue -h -w "$1" -t R -o %A); do
    for step in $(pgrep -x slurmstepd || true); do
      tr '\0' ' ' <"/proc/$step/cmdline" | grep -q "\[$job\." && victims+=" $(descendants "$step")"
    done
  done
  kill -9 $victims 2>/dev/null || true
}

case ${1:-} in
  up | down) "$1" ;;
  crash | revive) "$1" "$2" ;;
  *) sed -n '2,6s/^# //p' "$0"; exit 2 ;;
esac

//! Runs the groups one after the other, each in its own process, so that memory, threads and the cold start of one
//! group do not affect another.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail};

use super::{machine::Machine, plan::Group, row::BenchRow};
use crate::{INTERRUPTED, signals, ui};

/// The child process that is measuring.
type Running = Arc<Mutex<Option<Child>>>;

/// Measures all groups, and returns their rows and whether all were measured. An error in one group is printed, and
/// the other groups continue. If this process is interrupted, `scratch` is removed.
///
/// # Errors
/// If no process can be started at all.
pub(super) fn measure(groups: &[Group], scratch: Option<&Path>) -> Result<(Vec<BenchRow>, bool)> {
    let running = Running::default();
    end_on_interrupt(running.clone(), scratch.map(Path::to_owned))?;
    let executable = std::env::current_exe().context("this program does not find its own file")?;
    let (mut rows, mut whole) = (Vec::new(), true);
    for (index, group) in groups.iter().enumerate() {
        ui::say!("moi: measuring {group} ({} of {})", index + 1, groups.len());
        if let Err(error) = run(&executable, group, &running, &mut rows) {
            ui::say!("moi: not measured, or not all: {group}: {error:#}");
            whole = false;
        }
    }
    if !rows.is_empty() {
        let machine = Machine::this();
        rows.iter_mut().for_each(|row| row.machine = Some(machine.clone()));
    }
    Ok((rows, whole))
}

fn run(executable: &Path, group: &Group, running: &Running, rows: &mut Vec<BenchRow>) -> Result<()> {
    let mut command = Command::new(executable);
    command.args(["bench", "--group"]).arg(serde_json::to_string(group)?);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(threads) = group.threads {
        // Thread pools read these variables when they start.
        for name in ["MOI_THREADS", "RAYON_NUM_THREADS"] {
            command.env(name, threads.to_string());
        }
    }
    let mut child = command.spawn().with_context(|| format!("{} cannot be run", executable.display()))?;
    let stdout = child.stdout.take();
    *lock(running) = Some(child);
    let read = stdout.map_or(Ok(()), |stdout| read_rows(stdout, rows));
    let Some(mut child) = lock(running).take() else { bail!("it was interrupted") };
    if read.is_err() {
        // `kill` fails only if the child has already ended.
        let _ = child.kill();
    }
    let status = child.wait()?;
    read?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

/// Reads rows as JSON lines. Drivers may print other lines.
fn read_rows(from: impl Read, rows: &mut Vec<BenchRow>) -> Result<()> {
    for line in BufReader::new(from).lines() {
        let line = line?;
        match line.starts_with('{') {
            true => rows.push(serde_json::from_str(&line)?),
            false => ui::say!("{line}"),
        }
    }
    Ok(())
}

/// Ctrl-C ends this process and the child that is measuring.
fn end_on_interrupt(running: Running, scratch: Option<PathBuf>) -> Result<()> {
    signals::on_end(move || {
        if let Some(mut child) = lock(&running).take() {
            let _ = child.kill();
        }
        if let Some(scratch) = &scratch {
            let _ = std::fs::remove_dir_all(scratch);
        }
        ui::end_bars();
        std::process::exit(INTERRUPTED.into());
    })
}

fn lock(running: &Running) -> MutexGuard<'_, Option<Child>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

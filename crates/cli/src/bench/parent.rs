//! Groups run one after the other, each in a process of its own: so memory, threads and a cold start are its own.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail};

use super::{plan::Group, row::Row};
use crate::{INTERRUPTED, signals, ui};

/// The process that is measuring.
type Running = Arc<Mutex<Option<Child>>>;

/// The rows of all groups, and whether all were measured. What goes wrong with one is said, and the others go on.
///
/// # Errors
/// If no process can be started at all.
pub(super) fn measure(groups: &[Group]) -> Result<(Vec<Row>, bool)> {
    let running = Running::default();
    end_on_interrupt(running.clone())?;
    let executable = std::env::current_exe().context("this program does not find its own file")?;
    let (mut rows, mut whole) = (Vec::new(), true);
    for (index, group) in groups.iter().enumerate() {
        ui::say!("moi: measuring {group} ({} of {})", index + 1, groups.len());
        if let Err(error) = run(&executable, group, &running, &mut rows) {
            ui::say!("moi: not measured, or not all: {group}: {error:#}");
            whole = false;
        }
    }
    Ok((rows, whole))
}

fn run(executable: &Path, group: &Group, running: &Running, rows: &mut Vec<Row>) -> Result<()> {
    let mut command = Command::new(executable);
    command.args(["bench", "--group"]).arg(serde_json::to_string(group)?);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(threads) = group.threads {
        // Thread pools read these before anything else.
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
        // It has ended already where this fails.
        let _ = child.kill();
    }
    let status = child.wait()?;
    read?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

/// Rows come as JSON lines. Drivers may say something, too.
fn read_rows(from: impl Read, rows: &mut Vec<Row>) -> Result<()> {
    for line in BufReader::new(from).lines() {
        let line = line?;
        match line.starts_with('{') {
            true => rows.push(serde_json::from_str(&line)?),
            false => ui::say!("{line}"),
        }
    }
    Ok(())
}

/// Ctrl-C ends this process and the one that is measuring.
fn end_on_interrupt(running: Running) -> Result<()> {
    signals::on_end(move || {
        if let Some(mut child) = lock(&running).take() {
            let _ = child.kill();
        }
        ui::end_bars();
        std::process::exit(INTERRUPTED.into());
    })
}

fn lock(running: &Running) -> MutexGuard<'_, Option<Child>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

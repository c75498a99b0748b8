//! Catches panics of the GPU driver stack and turns them into errors.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::{DeviceError, DeviceName};

/// Computes a product of two small matrices and checks its values, because a kernel that cannot be compiled or
/// launched leaves its output unchanged and reports nothing: only the values reveal it.
///
/// # Errors
/// If the computation fails or the product is wrong; the text says which.
pub(crate) fn first_product<B: Backend>(device: &B::Device) -> Result<(), String> {
    let values: Vec<f32> = (0..64).map(|value| value as f32).collect();
    let square = Tensor::<B, 2>::from_data(TensorData::new(values, [8, 8]), (device, DType::F32));
    let product = square.clone().matmul(square);
    B::sync(device).map_err(|error| error.to_string())?;
    let product = product.try_into_data().map_err(|error| error.to_string())?;
    let cell = |row: usize, column: usize| (0..8).map(|i| ((8 * row + i) * (8 * i + column)) as f32).sum();
    let expected: Vec<f32> = (0..64).map(|index| cell(index / 8, index % 8)).collect();
    match product.iter::<f32>().eq(expected) {
        true => Ok(()),
        false => Err("a product of two small matrices comes out wrong".to_owned()),
    }
}

/// Runs work on a device that was started: a panic becomes an error with the driver's first panic message.
pub(crate) fn guarded<T>(name: DeviceName, work: impl FnOnce() -> T) -> Result<T, DeviceError> {
    quietly(work).map_err(|what| DeviceError::Failed { name, what })
}

/// Runs work and turns a panic into an error text. The driver stack panics, partly on its own threads, where it could
/// return an error; the first panic's message becomes the error. Messages of other threads are known only if the
/// process's panic hook calls [`records_panic`].
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    if UNDER_WAY.fetch_add(1, Ordering::SeqCst) == 0 {
        *first_words() = None;
    }
    let before = QUIET.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    done.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        first_words().clone().or(text.map(one_line)).unwrap_or_else(|| "it failed without a word".to_owned())
    })
}

/// Number of `quietly` calls in progress, on all threads.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is inside a `quietly` call.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The message of the first panic since the `quietly` calls in progress began.
fn first_words() -> MutexGuard<'static, Option<String>> {
    static FIRST: Mutex<Option<String>> = Mutex::new(None);
    FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a process's panic hook: records the message of a panic that becomes a [`DeviceError`], and returns true if
/// this panic does and need not be reported.
pub fn records_panic(panic: &PanicHookInfo<'_>) -> bool {
    // cubecl names its threads "DS...", and drivers do not name theirs; panics of other threads are not the driver's.
    let concerned = QUIET.get() || std::thread::current().name().is_none_or(|name| name.starts_with("DS"));
    if UNDER_WAY.load(Ordering::SeqCst) == 0 || !concerned {
        return false;
    }
    let text = panic.payload_as_str().unwrap_or("it failed without a word");
    let place = panic.location().map(|place| format!(" ({}:{})", file_name(place.file()), place.line()));
    // Only the first panic is kept, because later ones are its consequences.
    first_words().get_or_insert_with(|| format!("{}{}", one_line(text), place.unwrap_or_default()));
    true
}

/// The file name of a path: the directories of a registry or toolchain say nothing about the place.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// The message in one short line: a shader compiler appends the whole source, hundreds of lines.
fn one_line(text: &str) -> String {
    const MAX_LENGTH: usize = 400;
    let text = text.split("[Source]").next().unwrap_or(text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_LENGTH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_one_line() {
        assert_eq!(quietly(|| 3), Ok(3));
        // Without the panic hook there is no location, and no message from other threads.
        assert_eq!(quietly(|| -> u8 { panic!("no\n   driver") }), Err("no driver".to_owned()));
        let reported = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !records_panic(panic) {
                reported(panic);
            }
        }));
        let error = quietly(|| -> u8 { panic!("no\n   driver") }).unwrap_err();
        assert!(error.starts_with("no driver (probe.rs:"), "{error}");
        let source = "x ".repeat(1000);
        let error = quietly(|| -> u8 { panic!("no header\n[Source]\n{source}") }).unwrap_err();
        assert!(error.starts_with("no header (probe.rs:"), "{error}");
        let error = quietly(|| -> u8 { panic!("{source}") }).unwrap_err();
        assert!(error.len() < 450 && error.contains("x... (probe.rs:"), "{error}");
        // A panic on a driver's thread, and then one on this thread because the answer is missing.
        let error = quietly(|| -> u8 {
            let thread = std::thread::spawn(|| panic!("out of memory"));
            thread.join().expect("an answer");
            0
        });
        assert!(error.unwrap_err().starts_with("out of memory"));
    }
}

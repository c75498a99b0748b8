//! What stands between a driver stack that panics and a user.

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

/// A kernel that cannot be compiled or launched leaves its output as it was and says nothing: only the values
/// tell.
///
/// # Errors
/// With what came instead of a product of two small matrices.
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

/// Work on a device that started: a panic becomes an error with the first words of the driver's threads.
pub(crate) fn guarded<T>(name: DeviceName, work: impl FnOnce() -> T) -> Result<T, DeviceError> {
    quietly(work).map_err(|what| DeviceError::Failed { name, what })
}

/// The driver stack panics where it could say what is missing, some of it on threads of its own: its first words
/// become an error's. Those of other threads are known where the process's panic hook calls [`records_panic`].
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

/// How much quiet work there is.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread does some of it.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What the first panic of it said.
fn first_words() -> MutexGuard<'static, Option<String>> {
    static FIRST: Mutex<Option<String>> = Mutex::new(None);
    FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the words of a panic that becomes a [`DeviceError`], for a process's panic hook: whether this one does, and need
/// not be reported.
pub fn records_panic(panic: &PanicHookInfo<'_>) -> bool {
    // cubecl names its threads like that, and drivers do not name theirs; others have work of their own.
    let concerned = QUIET.get() || std::thread::current().name().is_none_or(|name| name.starts_with("DS"));
    if UNDER_WAY.load(Ordering::SeqCst) == 0 || !concerned {
        return false;
    }
    let text = panic.payload_as_str().unwrap_or("it failed without a word");
    let place = panic.location().map(|place| format!(" ({}:{})", file_name(place.file()), place.line()));
    // What follows a first failure is its consequence.
    first_words().get_or_insert_with(|| format!("{}{}", one_line(text), place.unwrap_or_default()));
    true
}

/// Of a path in a registry or toolchain, what tells the place.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// What is wrong, in a few words: a compiler says it with the whole source behind, hundreds of lines of it.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let text = text.split("[Source]").next().unwrap_or(text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
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
        // Without the process's help there is no place, and nothing of other threads.
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
        // On a thread of the driver's, and then here for want of an answer.
        let error = quietly(|| -> u8 {
            let thread = std::thread::spawn(|| panic!("out of memory"));
            thread.join().expect("an answer");
            0
        });
        assert!(error.unwrap_err().starts_with("out of memory"));
    }
}

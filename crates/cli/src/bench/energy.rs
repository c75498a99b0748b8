//! Energy counters of the platform: RAPL for processor packages, the driver library (nvml) for NVIDIA GPUs.
//!
//! Each device has one counter: a processor, and a GPU that shares its package, use that of the packages; an NVIDIA
//! GPU uses that of its board. The energy of the processor that drives a GPU is not included. The counters include
//! idle power, because they count everything that the part draws.

use std::{
    fs,
    ops::Add,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use moi_backends::{Class, Found};

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
use super::nvml;

/// The directory where Linux shows RAPL counters, including those of AMD processors.
const POWERCAP: &str = "/sys/class/powercap";

/// RAPL counters advance about every millisecond.
const RAPL_STEP: Duration = Duration::from_millis(1);
/// NVIDIA's counters advance every 20 to 100 milliseconds.
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
const NVML_STEP: Duration = Duration::from_millis(50);

/// A measurement must last at least this many counter steps. The error of up to one step at each end would be too
/// large in a shorter one.
const LEAST_STEPS: u32 = 10;

/// The energy counter of a device.
#[derive(Debug)]
pub(super) enum Meter {
    /// The packages of the processor.
    Rapl(Vec<Domain>),
    /// The board of a GPU.
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
    Nvml(nvml::Gpu),
}

impl Meter {
    /// The counter of a device, if the platform has one that this process may read.
    pub(super) fn of(found: &Found) -> Option<Self> {
        match found.class {
            Class::Software | Class::Processor => Self::rapl(Path::new(POWERCAP)),
            Class::Integrated if found.name.kind() != moi_backends::Kind::Cuda => {
                Self::rapl(Path::new(POWERCAP))
            }
            Class::Integrated | Class::Discrete => Self::nvml(found),
        }
    }

    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
    fn nvml(found: &Found) -> Option<Self> {
        nvml::Gpu::find(&found.description).map(Self::Nvml)
    }

    #[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "wgpu")))]
    fn nvml(_found: &Found) -> Option<Self> {
        None
    }

    /// The packages of the processor. All must be readable, because a sum of only some packages cannot be compared
    /// with anything.
    fn rapl(powercap: &Path) -> Option<Self> {
        let mut domains = Vec::new();
        for entry in fs::read_dir(powercap).ok()? {
            let directory = entry.ok()?.path();
            if is_top_level(&directory) && is_package(&directory) {
                domains.push(Domain::open(&directory)?);
            }
        }
        (!domains.is_empty()).then_some(Self::Rapl(domains))
    }

    /// The name of the counter in rows.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Rapl(_) => "rapl",
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
            Self::Nvml(_) => "nvml",
        }
    }

    /// The interval at which the counter advances.
    fn step(&self) -> Duration {
        match self {
            Self::Rapl(_) => RAPL_STEP,
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
            Self::Nvml(_) => NVML_STEP,
        }
    }

    /// The current values of the counters.
    fn read(&self) -> Option<Vec<u64>> {
        match self {
            Self::Rapl(domains) => domains.iter().map(|domain| number(&domain.energy)).collect(),
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
            Self::Nvml(gpu) => Some(vec![gpu.millijoules()?]),
        }
    }

    /// The joules since the counters had these values.
    fn joules_since(&self, before: &[u64]) -> Option<f64> {
        let now = self.read()?;
        let pairs = before.iter().copied().zip(now);
        match self {
            Self::Rapl(domains) => {
                let of_domain = |(domain, (before, now)): (&Domain, (u64, u64))| domain.between(before, now);
                let microjoules: u64 = domains.iter().zip(pairs).map(of_domain).sum::<Option<u64>>()?;
                Some(microjoules as f64 / 1e6)
            }
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
            Self::Nvml(_) => {
                let millijoules: u64 =
                    pairs.map(|(before, now)| now.checked_sub(before)).sum::<Option<u64>>()?;
                Some(millijoules as f64 / 1e3)
            }
        }
    }
}

/// A counter of microjoules that starts again from 0 after its range.
#[derive(Debug)]
pub(super) struct Domain {
    energy: PathBuf,
    /// The largest value of the counter, if the system says so.
    range: Option<u64>,
}

impl Domain {
    /// Returns `None` if the counter cannot be read: since 2020, Linux shows it to root only, unless the owner of the
    /// machine allows others.
    fn open(directory: &Path) -> Option<Self> {
        let energy = directory.join("energy_uj");
        number(&energy)?;
        Some(Self { energy, range: number(&directory.join("max_energy_range_uj")) })
    }

    /// The microjoules between two values. The counter may have wrapped around once in between; a wrap takes minutes
    /// at least.
    fn between(&self, before: u64, now: u64) -> Option<u64> {
        match now.checked_sub(before) {
            Some(difference) => Some(difference),
            None => self.range?.checked_sub(before)?.checked_add(now),
        }
    }
}

/// Whether a directory is `intel-rapl:N`, not a part of it such as `intel-rapl:N:M`.
fn is_top_level(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("intel-rapl:").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a domain is a package. Laptops also have the domain `psys`, which includes the packages and more.
fn is_package(directory: &Path) -> bool {
    fs::read_to_string(directory.join("name")).is_ok_and(|name| name.starts_with("package"))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Time and energy of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Used {
    pub(super) seconds: f64,
    /// The energy, if a counter provides it.
    pub(super) joules: Option<f64>,
}

impl Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let joules = self.joules.zip(other.joules).map(|(one, another)| one + another);
        Self { seconds: self.seconds + other.seconds, joules }
    }
}

/// Measures time, and energy where there is a counter.
#[derive(Debug)]
pub(super) struct Stopwatch<'a> {
    begun: Instant,
    /// The values of the counters at the start.
    counted: Option<(&'a Meter, Vec<u64>)>,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn start(meter: Option<&'a Meter>) -> Self {
        // The counters are read before the clock starts, because reading them is not part of the measurement.
        let counted = meter.and_then(|meter| Some((meter, meter.read()?)));
        Self { begun: Instant::now(), counted }
    }

    pub(super) fn stop(self) -> Used {
        let time = self.begun.elapsed();
        let joules = self.counted.and_then(|(meter, before)| {
            let is_long_enough = time >= meter.step() * LEAST_STEPS;
            is_long_enough.then(|| meter.joules_since(&before)).flatten()
        });
        Used { seconds: time.as_secs_f64(), joules }
    }
}

/// The mean joules per token of repetitions with `tokens` tokens each; `None` if one repetition has no value.
pub(super) fn per_token(joules: &[Option<f64>], tokens: usize) -> Option<f64> {
    let sum: f64 = joules.iter().copied().sum::<Option<f64>>()?;
    let tokens = joules.len() * tokens;
    (tokens > 0).then(|| sum / tokens as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(powercap: &Path, directory: &str, name: &str, energy: u64) {
        let directory = powercap.join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("name"), format!("{name}\n")).unwrap();
        fs::write(directory.join("energy_uj"), format!("{energy}\n")).unwrap();
        fs::write(directory.join("max_energy_range_uj"), "1000000000\n").unwrap();
    }

    #[test]
    fn packages_are_added_up_and_their_parts_are_not() {
        let powercap = tempfile::tempdir().unwrap();
        fs::create_dir(powercap.path().join("intel-rapl")).unwrap();
        let set = |energy: [u64; 6]| {
            domain(powercap.path(), "intel-rapl:0", "package-0", energy[0]);
            domain(powercap.path(), "intel-rapl:0:0", "core", energy[1]);
            domain(powercap.path(), "intel-rapl:1", "package-1", energy[2]);
            domain(powercap.path(), "intel-rapl:2", "psys", energy[3]);
            domain(powercap.path(), "intel-rapl-mmio:0", "package-0", energy[4]);
            domain(powercap.path(), "dtpm", "package-0", energy[5]);
        };
        set([5_000_000, 1, 7_000_000, 1, 1, 1]);
        let meter = Meter::rapl(powercap.path()).unwrap();
        assert_eq!(meter.name(), "rapl");
        let before = meter.read().unwrap();
        assert_eq!(before.len(), 2);
        set([6_500_000, 900_000_000, 7_250_000, 900_000_000, 900_000_000, 900_000_000]);
        assert_eq!(meter.joules_since(&before), Some(1.75));
    }

    #[test]
    fn a_counter_may_begin_anew() {
        let powercap = tempfile::tempdir().unwrap();
        domain(powercap.path(), "intel-rapl:0", "package-0", 999_000_000);
        let meter = Meter::rapl(powercap.path()).unwrap();
        let before = meter.read().unwrap();
        domain(powercap.path(), "intel-rapl:0", "package-0", 2_000_000);
        assert_eq!(meter.joules_since(&before), Some(3.0));
        // Without a range file, a wrapped counter cannot be evaluated.
        fs::remove_file(powercap.path().join("intel-rapl:0/max_energy_range_uj")).unwrap();
        let meter = Meter::rapl(powercap.path()).unwrap();
        assert_eq!(meter.joules_since(&[999_000_000]), None);
        assert_eq!(meter.joules_since(&[1_000_000]), Some(1.0));
    }

    #[test]
    fn what_cannot_be_read_is_not_told() {
        let powercap = tempfile::tempdir().unwrap();
        assert!(Meter::rapl(powercap.path()).is_none());
        assert!(Meter::rapl(&powercap.path().join("absent")).is_none());
        domain(powercap.path(), "intel-rapl:0", "package-0", 1_000_000);
        domain(powercap.path(), "intel-rapl:1", "package-1", 1_000_000);
        let meter = Meter::rapl(powercap.path()).unwrap();
        let before = meter.read().unwrap();
        // A missing file stands for one that this process may not read.
        let second = powercap.path().join("intel-rapl:1/energy_uj");
        fs::remove_file(&second).unwrap();
        assert_eq!(meter.joules_since(&before), None);
        assert!(Meter::rapl(powercap.path()).is_none());
        fs::write(&second, "much").unwrap();
        assert!(Meter::rapl(powercap.path()).is_none());
    }

    #[test]
    fn short_measurements_have_no_energy() {
        let powercap = tempfile::tempdir().unwrap();
        domain(powercap.path(), "intel-rapl:0", "package-0", 1_000_000);
        let meter = Meter::rapl(powercap.path()).unwrap();
        let watch = Stopwatch { begun: Instant::now(), counted: Some((&meter, vec![500_000])) };
        let used = watch.stop();
        // If the machine was paused, the measurement may have been long enough for a value.
        assert!(used.joules.is_none() || used.seconds >= 0.01);
        let watch = Stopwatch::start(Some(&meter));
        domain(powercap.path(), "intel-rapl:0", "package-0", 3_000_000);
        std::thread::sleep(RAPL_STEP * LEAST_STEPS);
        assert_eq!(watch.stop().joules, Some(2.0));
        assert_eq!(Stopwatch::start(None).stop().joules, None);
    }

    #[test]
    fn energy_is_told_of_all_or_nothing() {
        let [counted, other] = [Some(2.0), None].map(|joules| Used { seconds: 1.0, joules });
        assert_eq!(counted + counted, Used { seconds: 2.0, joules: Some(4.0) });
        assert_eq!((counted + other).joules, None);
        assert_eq!(per_token(&[Some(2.0), Some(4.0)], 3), Some(1.0));
        assert_eq!(per_token(&[Some(2.0), None], 3), None);
        assert_eq!(per_token(&[], 3), None);
    }
}

//! The matrices of all experts of a block in one buffer, for a backend's kernels.

use std::{any::Any, fmt, sync::Arc};

use burn::{
    module::{
        AutodiffModule, Content, Devices, EmptyRecord, Module, ModuleDisplay, ModuleDisplayDefault,
        ModuleMapper, ModuleVisitor,
    },
    tensor::backend::{AutodiffBackend, Backend},
};

/// The matrices of all experts, one after another, for kernels that read the picked ones by themselves; empty if
/// there are no such kernels. Any operation that may change or move the experts' weights removes it, and then picks
/// are read back.
///
/// # Examples
/// ```
/// use moi_models::ExpertStack;
///
/// // There are no kernels that read one.
/// assert_eq!(format!("{:?}", ExpertStack::default()), "no ExpertStack");
/// ```
#[derive(Clone, Default)]
pub struct ExpertStack(Option<Arc<dyn Any + Send + Sync>>);

impl ExpertStack {
    /// The stack of a backend's kernels.
    #[cfg(feature = "gpu")]
    pub(crate) fn new<S: Send + Sync + 'static>(stack: S) -> Self {
        Self(Some(Arc::new(stack)))
    }

    /// The stack, if there is one of this type.
    #[cfg(feature = "gpu")]
    pub(crate) fn get<S: 'static>(&self) -> Option<&S> {
        self.0.as_ref()?.downcast_ref()
    }
}

impl fmt::Debug for ExpertStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ExpertStack" } else { "no ExpertStack" })
    }
}

impl<B: Backend> Module<B> for ExpertStack {
    type Record = EmptyRecord;

    fn visit<V: ModuleVisitor<B>>(&self, _: &mut V) {}

    fn map<M: ModuleMapper<B>>(self, _: &mut M) -> Self {
        Self::default()
    }

    fn load_record(self, _: EmptyRecord) -> Self {
        Self::default()
    }

    fn into_record(self) -> EmptyRecord {
        EmptyRecord::new()
    }

    fn to_device(self, _: &B::Device) -> Self {
        Self::default()
    }

    fn fork(self, _: &B::Device) -> Self {
        Self::default()
    }

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        devices
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for ExpertStack {
    type InnerModule = Self;

    fn valid(&self) -> Self {
        Self::default()
    }

    fn from_inner(_: Self) -> Self {
        Self::default()
    }
}

impl ModuleDisplayDefault for ExpertStack {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&format!("{self:?}")).optional()
    }
}

impl ModuleDisplay for ExpertStack {}

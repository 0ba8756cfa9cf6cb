//! The hardware and the kernel that a simulated node tells of: those of the recorded host, wherever the simulation runs.

/// The kernel's release and build.
pub(super) const KERNEL: (&str, &str) = ("6.18.44-fc-v669", "#1 SMP PREEMPT_DYNAMIC @0");
/// The processor's model, vendor, family and clock in MHz.
pub(super) const CPU: (&str, &str, &str, &str) = ("AMD EPYC", "AuthenticAMD", "26", "2596.122");
/// Its cores.
pub(super) const CORES: u32 = 2;
/// Its features.
pub(super) const CPU_FLAGS: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht syscall nx mmxext \
    fxsr_opt pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology nonstop_tsc cpuid extd_apicid tsc_known_freq pni \
    pclmulqdq ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave avx f16c rdrand hypervisor \
    lahf_lm cmp_legacy cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw topoext vmmcall fsgsbase tsc_adjust bmi1 avx2 \
    smep bmi2 erms invpcid avx512f avx512dq adx smap avx512ifma clflushopt clwb avx512cd sha_ni avx512bw avx512vl xsaveopt \
    xsavec xgetbv1 xsaves avx_vnni avx512_bf16 clzero xsaveerptr arat avx512vbmi umip avx512_vbmi2 gfni vaes vpclmulqdq \
    avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid fsrm avx512_vp2intersect";

"""Functions of the kernel that a report passes over when it looks for the guilty one, each group with its reason.

The names come from the kernel's sources. Leading underscores, compilers' suffixes and `_noprof` (since Linux commit
7bd230a26648 ("mm/slab: enable slab allocation tagging for kmalloc and friends") in v6.10) do not count.
A name stands here in full. A pattern stands here only if every function that it matches belongs to the group.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Group(NamedTuple):
    """Functions that are passed over for one reason."""

    reason: str
    names: str
    """Separated by spaces."""
    pattern: str = r"(?!)"
    """Matches the whole name."""
    reports: bool = False
    """They print the report, or lead to it: a trace that shows only these does not show the bug."""
    enters: bool = False
    """They call whoever has registered with them, or enter the kernel: they are below the bug, not above."""
    interrupts: bool = False
    """An interrupt enters here: what it interrupted comes behind them."""
    yields: bool = False
    """They give up the CPU, or are the victim of who does not: a stack with no more than these shows no culprit."""
    modules: frozenset[str] = frozenset()
    """The modules that these functions are in; those of the other groups are the kernel's own."""
    innocent: bool = False
    """They print a stack that somebody asked for, or that tells of a shortage: no bug."""


GROUPS = (
    Group(
        "prints a stack that tells of no bug: memory is short, a fault was injected, somebody asked",
        "fail_dump should_fail should_failslab should_fail_ex should_fail_alloc_page fei_kprobe_handler "
        "warn_alloc warn_alloc_failed dump_header out_of_memory oom_kill_process mem_cgroup_out_of_memory "
        "show_mem slab_out_of_memory handle_sysrq sysrq_handle_showallcpus sysrq_handle_showregs "
        "sysrq_showregs_othercpus write_sysrq_trigger",
        reports=True,
        innocent=True,
    ),
    Group(
        "prints the report",
        "report_bad_irq note_interrupt dump_stack dump_stack_lvl dump_stack_print_info dump_backtrace "
        "dump_backtrace_entry dump_backtrace_log_lvl dump_backtrace_stm dump_mem show_stack show_stack_log_lvl "
        "show_trace dump_trace show_trace_log_lvl show_regs show_regs_print_info show_fault_oops show_opcodes "
        "unwind_backtrace walk_stackframe walk_stack_frame arch_stack_walk stack_trace_consume_entry panic vpanic "
        "nmi_panic check_panic_on_warn panic_saved_regs die die_body die_addr die_kernel_fault oops_end oops_enter "
        "oops_exit bust_spinlocks warn warn_printk warn_slowpath_common warn_slowpath_fmt warn_slowpath_fmt_taint "
        "warn_slowpath_null warn_bogus_irq_restore report_bug report_bug_entry fixup_bug handle_bug do_report_trap "
        "print_report print_address_description print_trailer print_tainted print_track object_err slab_err slab_bug "
        "slab_fix print_page_info bad_page dump_page dump_page_owner page_fault_oops no_context print_circular_bug "
        "print_circular_bug_header print_bad_irq_dependency print_irq_inversion_bug print_usage_bug "
        "print_deadlock_bug print_unlock_imbalance_bug print_lock_contention_bug print_lock_nested_lock_not_held "
        "print_freed_lock_bug print_lock_invalid_wait_context print_kernel_ident print_collision sched_show_task "
        "show_state_filter rcu_dump_cpu_stacks rcu_print_detail_task_stall_rnp print_other_cpu_stall print_cpu_stall "
        "debug_show_all_locks lockdep_rcu_suspicious schedule_bug schedule_debug dequeue_task_idle report_init_error "
        "nmi_cpu_backtrace get_taint ubsan_epilogue handle_overflow handle_object_size_mismatch val_to_string "
        "kunit_binary_assert_format print_bad_pte free_page_is_bad_report check_free_page_bad check_new_page_bad "
        "free_pages_check_bad",
        reports=True,
    ),
    Group(
        "handles the trap",
        "do_trap do_trap_no_signal do_error_trap do_invalid_op do_int3 do_general_protection do_double_fault "
        "do_stack_segment do_divide_error do_debug do_nmi do_machine_check invalid_op general_protection "
        "double_fault divide_error stack_segment int3 debug error_entry error_code page_fault async_page_fault "
        "do_page_fault do_async_page_fault handle_page_fault spurious_fault spurious_kernel_fault "
        "do_user_addr_fault do_kern_addr_fault bad_area bad_area_nosemaphore bad_area_access_error "
        "kernelmode_fixup_or_oops fixup_exception search_exception_tables df_debug handle_invalid_op "
        "handle_stack_overflow gp_user_force_sig_segv vmalloc_fault do_mem_abort do_translation_fault do_sea "
        "do_undefinstr do_serror do_debug_exception do_bad_area do_kernel_fault do_tag_check_fault do_sp_pc_abort "
        "do_alignment_fault bug_handler bug_brk_handler brk_handler ubsan_handler ubsan_brk_handler kasan_handler "
        "kasan_brk_handler cfi_handler cfi_brk_handler call_break_hook call_undef_hook arm64_serror_panic "
        "do_brk64 do_el1_brk64 arm64_force_sig_fault handle_bad_stack panic_bad_stack bad_mode early_brk64 "
        "arm64_notify_die dabt_svc pabt_svc und_svc und_fault do_DataAbort do_PrefetchAbort arm_notify_die "
        "do_alignment handle_exception ret_from_exception do_trap_break do_trap_insn_illegal do_trap_ecall_u "
        "do_trap_load_fault do_trap_error do_trap_store_misaligned do_trap_load_misaligned do_be do_ri do_bp "
        "do_cpu do_ov do_ade tlb_do_page_fault_0 tlb_do_page_fault_1 handle_sys bad_page_fault do_program_check "
        "program_check_exception program_check_common program_check_common_virt data_access_common "
        "data_access_common_virt handle_hv_page_fault exception_common bad_stack unrecoverable_exception do_break "
        "machine_check_exception alignment_exception instruction_access_common do_exception pgm_check_handler "
        "do_pgm_check do_dat_exception do_protection_exception monitor_event_exception illegal_op pgm_exit",
        r"(?:asm_)?(?:exc|xen)_\w+|el[01]\w*_(?:sync|error|abort|undef|dbg|brk64|inv|pc|sp|bti|fpac|sys|ia|da)(?:_handler)?"
        r"|do_el[01]_\w+|el1_(?:da|ia|abort)|rcu_(?:irq|nmi)_(?:enter|exit)\w*",
        reports=True,
    ),
    Group(
        "an interrupt, which is not what it interrupted",
        "apic_timer_interrupt smp_apic_timer_interrupt local_apic_timer_interrupt common_interrupt "
        "reschedule_interrupt call_function_interrupt call_function_single_interrupt irq_svc irq_usr irq_invoked "
        "do_irq ret_from_intr handle_domain_irq generic_handle_irq generic_handle_domain_irq "
        "generic_handle_irq_desc handle_percpu_devid_irq handle_percpu_irq handle_fasteoi_irq handle_edge_irq "
        "handle_level_irq handle_irq_event handle_irq_event_percpu gic_handle_irq gic_irq_handler "
        "arch_timer_handler_virt arch_timer_handler_phys call_on_irq_stack do_interrupt_handler irq_exit "
        "irq_exit_rcu irq_enter irq_enter_rcu plat_irq_dispatch riscv_intc_irq except_vec_vi_end timer_interrupt "
        "decrementer_common do_IRQ do_irq_own_stack invoke_softirq hrtimer_interrupt do_handle_IPI ipi_handler "
        "handle_riscv_irq gic_ipi_handler handle_IRQ retint_kernel retint_user",
        r"(?:asm_)?sysvec_\w+|asm_common_interrupt|el[01]\w*_(?:irq|fiq)(?:_handler)?|el1_interrupt|(?:smp_)?(?:trace_)?apic_\w+_interrupt\w*",
        interrupts=True,
    ),
    Group(
        "runs what is pending in softirq context",
        "do_softirq do_softirq_own_stack handle_softirqs run_ksoftirqd local_bh_enable local_bh_enable_ip "
        "local_bh_disable local_bh_disable_ip smpboot_thread_fn do_softirq_part",
    ),
    Group(
        "watches over hangs",
        "watchdog watchdog_timer_fn watchdog_overflow_callback watchdog_hardlockup_check watchdog_check_hung_task "
        "check_hung_uninterruptible_tasks check_hung_task trigger_all_cpu_backtrace trigger_single_cpu_backtrace "
        "arch_trigger_cpumask_backtrace arch_trigger_all_cpu_backtrace nmi_trigger_cpumask_backtrace "
        "nmi_cpu_backtrace_handler nmi_raise_cpu_backtrace nmi_handle default_do_nmi end_repeat_nmi first_nmi "
        "nmi_restore repeat_nmi perf_event_overflow perf_event_nmi_handler intel_pmu_handle_irq "
        "hrtimer_run_queues hrtimer_run_softirq update_process_times tick_sched_handle tick_sched_timer "
        "tick_nohz_handler tick_periodic tick_handle_periodic scheduler_tick sched_tick rcu_sched_clock_irq "
        "rcu_check_callbacks rcu_pending check_cpu_stall account_process_tick perf_event_task_tick "
        "rcu_check_gp_kthread_starvation",
        reports=True,
    ),
    Group(
        "a sanitizer or coverage call that the compiler put in",
        "check_memory_region check_memory_region_inline check_region_inline memory_is_poisoned "
        "memory_is_poisoned_n poison_slab_object kcov_ioctl_locked write_comp_data check_kcov_mode area_run "
        "sanitizer_cov_trace_pc read_word_at_a_time read_once_word_nocheck read_once_size_nocheck qlist_free_all "
        "qlink_free quarantine_reduce quarantine_put quarantine_remove_cache",
        r"(?:k|hw)?(?:a|m|c|t)san_\w+|ubsan_\w+|kfence_\w+|sanitizer_cov_\w+|kcov_\w+|tsan_\w+",
        reports=True,
    ),
    Group(
        "a check that complains for its caller",
        "refcount_warn_saturate kref_get kref_put kref_put_mutex kref_put_lock kref_sub list_add list_add_valid "
        "list_add_valid_or_report list_add_tail list_del list_del_init list_del_entry list_del_entry_valid "
        "list_del_entry_valid_or_report list_move list_move_tail list_splice list_replace fortify_panic "
        "fortify_report write_overflow read_overflow usercopy_abort usercopy_warn report_usercopy check_object_size "
        "check_heap_object check_stack_object check_bogus_address check_kernel_text_object check_page_span "
        "check_preemption_disabled virt_addr_valid debug_smp_processor_id this_cpu_preempt_check might_sleep "
        "might_resched might_fault might_alloc cant_sleep cant_migrate spin_bug spin_dump rwlock_bug stack_chk_fail "
        "debug_print_object debug_check_no_obj_freed debug_check_no_locks_held debug_check_no_locks_freed "
        "timer_is_static_object work_is_static_object rcu_sleep_check check_flush_dependency ref_tracker_free "
        "ref_tracker_alloc ref_tracker_dir_exit phys_addr phys_addr_symbol virt_to_phys assertfail assfail "
        "bpf_prog_put_check ext4_handle_error skb_assert_len seqprop_assert check_slab validate_slab "
        "validate_slab_cache validate_slab_node validate_store slab_attr_store free_consistency_checks "
        "alloc_consistency_checks alloc_debug_processing free_debug_processing free_to_partial_list check_object "
        "check_bytes_and_report slab_pad_check on_freelist init_object check_valid_pointer list_slab_objects "
        "free_partial kmem_cache_shutdown iov_iter_bug uaccess_warn umount_check drop_nlink_warn",
        r"refcount_\w+|debug_(?:object|timer|work|rcu|hrtimer|mutex|spin|rt_mutex)_\w+|kunit_\w+",
    ),
    Group(
        "lockdep itself",
        "lock_acquire lock_release lock_acquired lock_contended lock_is_held_type lock_downgrade lock_set_class "
        "lock_pin_lock lock_unpin_lock check_noncircular check_prev_add check_prevs_add check_irq_usage check_usage "
        "check_usage_backwards check_usage_forwards check_deadlock check_path check_redundant check_wait_context "
        "check_lock_unused check_cfs_rq add_lock_to_list validate_chain register_lock_class look_up_lock_class "
        "assign_lock_key hlock_class hlock_id mark_lock mark_lock_irq mark_usage mark_held_locks mark_lock_accessed "
        "valid_state mark_lock_part lookup_chain_cache lookup_chain_cache_add add_chain_cache reacquire_held_locks "
        "trace_hardirqs_on trace_hardirqs_off trace_hardirqs_on_caller trace_hardirqs_off_caller "
        "trace_hardirqs_on_thunk trace_hardirqs_off_thunk trace_softirqs_on trace_softirqs_off "
        "trace_hardirqs_on_prepare trace_hardirqs_off_finish bfs rcu_lock_acquire rcu_is_watching "
        "rcu_dynticks_curr_cpu_in_eqs rcu_preempt_sleep_check rcu_lock_release rcu_read_lock rcu_read_unlock "
        "rcu_read_lock_bh rcu_read_unlock_bh rcu_read_lock_sched rcu_read_unlock_sched rcu_read_lock_held "
        "rcu_read_lock_bh_held rcu_read_lock_sched_held rcu_read_lock_any_held rcu_read_lock_held_common "
        "rcu_sync_lockdep_assert rcu_read_unlock_special srcu_read_lock srcu_read_unlock rcu_note_context_switch "
        "usage_match usage_accumulate class_equal debug_locks_off noop_count might_lock do_lock_check",
        r"lockdep_\w+",
    ),
    Group(
        "takes or leaves a lock for its caller",
        "down down_interruptible down_killable down_trylock down_timeout down_timeout_interruptible up "
        "downgrade_write rwsem_wake rwsem_wake_part rwsem_mark_wake rwsem_optimistic_spin rwsem_try_write_lock "
        "rwsem_down_read_failed rwsem_down_write_failed rwsem_down_write_failed_killable "
        "rwsem_down_write_failed_common rwsem_down_read_slowpath rwsem_down_write_slowpath rwsem_spin_on_owner "
        "call_rwsem_down_read_failed call_rwsem_down_write_failed call_rwsem_down_write_failed_killable "
        "call_rwsem_wake percpu_down_read percpu_down_write percpu_up_read percpu_up_write percpu_rwsem_wait "
        "percpu_down_read_trylock cpus_read_lock cpus_read_unlock native_queued_spin_lock_slowpath "
        "queued_spin_lock_slowpath pv_queued_spin_lock_slowpath pv_native_safe_halt queued_read_lock_slowpath "
        "queued_write_lock_slowpath osq_lock osq_unlock owner_on_cpu mutex_optimistic_spin mutex_spin_on_owner "
        "mutex_init mutex_is_locked mutex_remove_waiter mutex_add_waiter mutex_destroy rt_mutex_slowlock "
        "rt_mutex_slowlock_block rt_mutex_slowunlock rt_mutex_schedule rtlock_slowlock rt_spin_lock rt_spin_unlock "
        "rt_spin_trylock rt_read_lock rt_write_lock ww_mutex_lock ww_mutex_lock_interruptible ww_mutex_unlock "
        "ww_mutex_trylock bit_spin_lock bit_spin_unlock raw_spin_rq_lock_nested raw_spin_rq_unlock "
        "raw_spin_rq_unlock_irq arch_spin_lock arch_read_lock arch_write_lock atomic_dec_and_lock "
        "atomic_dec_and_lock_irqsave atomic_dec_and_mutex_lock lock_page lock_page_killable unlock_page folio_lock "
        "folio_unlock lock_sock_nested_check lock_sock lock_sock_nested lock_sock_fast release_sock console_lock "
        "console_trylock rtnl_lock rtnl_lock_killable rtnl_trylock rtnl_unlock ldsem_down_read ldsem_down_write "
        "ldsem_up_read ldsem_up_write cmpxchg_wait spin_lock_init rwlock_init init_rwsem lock_timer_base",
        r"(?:do_|arch_)?(?:raw_)?(?:spin|read|write)_(?:try)?(?:un)?lock(?:_bh|_irq|_irqsave|_irqrestore|_irqsave_nested|_nested"
        r"|_nest_lock|_bh_nested|_slowpath|_init|_wait)?"
        r"|(?:rt_)?mutex_(?:try)?(?:un)?lock(?:_\w+)?|(?:down|up)_(?:read|write)(?:_\w+)?",
    ),
    Group(
        "gives up the CPU for its caller",
        "schedule schedule_timeout schedule_timeout_interruptible schedule_timeout_uninterruptible "
        "schedule_timeout_killable schedule_timeout_idle schedule_preempt_disabled schedule_idle "
        "schedule_hrtimeout schedule_hrtimeout_range schedule_hrtimeout_range_clock schedule_rtlock io_schedule "
        "io_schedule_timeout io_schedule_prepare preempt_schedule preempt_schedule_common preempt_schedule_irq "
        "preempt_schedule_notrace preempt_schedule_thunk preempt_schedule_notrace_thunk cond_resched "
        "cond_resched_lock schedule_loop context_switch switch_to switch_to_asm deactivate_task pick_next_task "
        "finish_task_switch",
        yields=True,
    ),
    Group(
        "sleeps or waits for its caller",
        "csd_lock_wait wait_for_common wait_for_common_io wait_on_bit wait_on_bit_lock out_of_line_wait_on_bit "
        "out_of_line_wait_on_bit_lock bit_wait bit_wait_io bit_wait_timeout wait_on_page_bit wait_on_page_bit_common "
        "folio_wait_bit folio_wait_bit_common wait_on_buffer do_wait_intr do_wait_intr_irq wait_woken finish_wait "
        "prepare_to_wait prepare_to_wait_event prepare_to_wait_exclusive wait_rcu_gp synchronize_rcu "
        "synchronize_rcu_normal synchronize_rcu_expedited synchronize_srcu synchronize_srcu_expedited "
        "synchronize_sched synchronize_net rcu_barrier synchronize_rcu_tasks synchronize_irq rcu_barrier_tasks "
        "srcu_barrier exp_funnel_lock synchronize_hardirq flush_work flush_workqueue flush_delayed_work "
        "flush_scheduled_work cancel_work cancel_work_sync cancel_delayed_work cancel_delayed_work_sync "
        "cancel_work_timer drain_workqueue destroy_workqueue try_to_grab_pending work_grab_pending start_flush_work "
        "kthread_stop kthread_park kthread_flush_work kthread_flush_worker kthread_cancel_work_sync "
        "kthread_destroy_worker msleep msleep_interruptible ssleep usleep_range usleep_range_state fsleep ndelay "
        "udelay mdelay delay const_udelay delay_tsc delay_halt delay_mwaitx delay_loop read_current_timer del_timer "
        "del_timer_sync timer_delete timer_delete_sync try_to_del_timer_sync try_to_timer_delete_sync timer_shutdown "
        "timer_shutdown_sync sk_stop_timer_sync hrtimer_cancel hrtimer_try_to_cancel hrtimer_nanosleep do_nanosleep "
        "complete complete_all complete_with_flags wake_up wake_up_common wake_up_common_lock wake_up_locked "
        "wake_up_bit wake_up_sync_key wake_up_process try_to_wake_up autoremove_wake_function default_wake_function "
        "swake_up_locked smp_call_function smp_call_function_single smp_call_function_many "
        "smp_call_function_many_cond smp_call_function_any on_each_cpu on_each_cpu_cond on_each_cpu_cond_mask "
        "on_each_cpu_mask stop_machine stop_machine_cpuslocked stop_cpus stop_one_cpu kthread_should_stop "
        "kthread_should_park kthread_parkme swait_prepare rwsem_wait wait_task_inactive preempt_count_add "
        "preempt_count_sub",
        r"(?:try_)?wait_for_completion(?:_\w+)?",
    ),
    Group(
        "waits, locks or panics for OpenZFS, which has them in a module of its own",
        "spl_panic spl_dumpstack vcmn_err cmn_err zfs_panic_recover cv_wait cv_wait_common cv_wait_io cv_wait_sig "
        "cv_wait_idle cv_timedwait cv_timedwait_common cv_timedwait_io cv_timedwait_sig cv_timedwait_hires "
        "cv_timedwait_idle cv_timedwait_idle_hires cv_timedwait_sig_hires spl_mutex_enter taskq_wait "
        "taskq_wait_id taskq_wait_outstanding",
        modules=frozenset({"spl", "zfs"}),
    ),
    Group(
        "panics for Lustre, which has it in a module of its own",
        "libcfs_call_trace libcfs_debug_dumpstack lbug_with_loc libcfs_assertion_failed",
        reports=True,
        modules=frozenset({"libcfs"}),
    ),
    Group(
        "RCU's own thread, the victim of a stall",
        "rcu_gp_kthread rcu_gp_fqs_loop rcu_gp_fqs rcu_gp_init rcu_gp_cleanup rcu_exp_gp_kthread_worker "
        "rcu_tasks_kthread rcu_nocb_gp_kthread rcu_nocb_cb_kthread",
        yields=True,
    ),
    Group(
        "allocates or frees for its caller",
        "memblock_alloc_range_nid memblock_alloc_internal memblock_alloc_try_nid memblock_phys_alloc_range "
        "alloc_pages alloc_pages_node alloc_pages_nodemask alloc_pages_slowpath alloc_pages_direct_compact "
        "alloc_pages_bulk alloc_pages_current alloc_pages_mpol alloc_pages_vma alloc_page_interleave "
        "alloc_pages_exact alloc_frozen_pages get_page_from_freelist rmqueue prep_new_page post_alloc_hook "
        "get_free_pages get_zeroed_page free_pages free_page free_frozen_pages free_unref_page "
        "free_unref_page_commit free_unref_page_prepare free_unref_folios free_pages_ok free_pages_prepare "
        "free_pcppages_bulk folio_alloc folio_put folio_alloc_mpol put_page release_pages page_frag_alloc "
        "page_frag_free page_frag_alloc_align new_slab allocate_slab alloc_slab_page slab_alloc slab_alloc_node "
        "slab_free slab_post_alloc_hook slab_pre_alloc_hook slab_free_hook slab_free_freelist_hook "
        "slab_free_after_rcu_debug discard_slab free_slab unfreeze_partials put_cpu_partial get_partial "
        "get_partial_node do_kmalloc do_kmalloc_node do_slab_free cache_grow_begin cache_alloc_refill cache_free "
        "cache_free_debugcheck cache_alloc_debugcheck_after memcg_slab_post_alloc_hook memcg_slab_free_hook "
        "set_track set_track_prepare save_stack_trace stack_trace_save stack_depot_save create_object "
        "kmemleak_alloc kmemleak_alloc_percpu kmemleak_alloc_phys kmemleak_free free_large_kmalloc "
        "kfree_sensitive kmalloc_large_node vmalloc vmalloc_user vmalloc_node vmalloc_node_range "
        "vmalloc_area_node vmalloc_32 vmalloc_huge vzalloc vzalloc_node vfree vfree_atomic vunmap vmap "
        "alloc_vmap_area free_vmap_area_noflush remove_vm_area vm_area_free_pages vmalloc_node_flags_caller "
        "vmalloc_node_range_memcg pcpu_alloc alloc_percpu alloc_percpu_gfp free_percpu pcpu_mem_zalloc "
        "pcpu_create_chunk percpu_ref_kill_and_confirm mempool_alloc mempool_free mempool_alloc_slab "
        "mempool_free_slab mempool_kmalloc mempool_kfree mempool_alloc_pages mempool_init_node memdup_user "
        "memdup_user_nul vmemdup_user dma_alloc_attrs dma_free_attrs dma_direct_alloc dma_direct_free "
        "dma_pool_alloc dma_pool_free dmam_alloc_attrs device_kmalloc devm_kmalloc devm_kasprintf devm_kstrdup "
        "devm_kfree devm_add_action sock_kmalloc sock_wmalloc sock_kfree_s simple_set_track sk_alloc sk_prot_alloc "
        "dev_alloc_skb alloc_inode new_inode new_inode_pseudo iget_locked iget5_locked",
        r"k[vzm]?(?:m?alloc|calloc|realloc|zalloc|free|memdup|strdup|strndup|vmalloc|vasprintf|asprintf|vfree)(?:_\w+)?|kmem_cache_\w+",
    ),
    Group(
        "works on strings or copies memory for its caller",
        "memcpy memcpy_orig memcpy_erms memcpy_fromio memcpy_toio memcpy_flushcache memcpy_mcsafe "
        "copy_mc_to_kernel memmove memmove_erms memset memset_orig memset_erms memset_io memset16 memset32 "
        "memset64 memcmp bcmp memchr memchr_inv memscan memcpy_and_pad memzero_explicit pi_memcpy pi_memset "
        "pi_memmove pi_memcmp pi_memchr pi_strlen pi_strnlen pi_strcmp pi_strncmp pi_strchr strreplace "
        "strndup_user strncpy_from_user_nofault strncpy_from_kernel_nofault bin2hex hex2bin hex_to_bin memparse "
        "match_token match_strcpy get_option get_options kstrtos8 kstrtou16 kstrtos16 simple_strntoull crc7_be "
        "crc8 crc4 crc64_be crc64_rocksoft crc32_be_base crc32c_base strlen strnlen strcmp strncmp strcasecmp "
        "strncasecmp strcpy strncpy strscpy strscpy_pad strlcpy strlcat strcat strncat strchr strchrnul strrchr "
        "strstr strnstr strsep strspn strcspn strpbrk strim skip_spaces sized_strscpy fortify_strlen kstrtoull "
        "kstrtoll kstrtoint kstrtouint kstrtoul kstrtol kstrtobool kstrtou8 simple_strtoul simple_strtoull "
        "simple_strtol sscanf vsscanf match_string sysfs_streq vsnprintf snprintf scnprintf vscnprintf sprintf "
        "vsprintf format_decode string string_nocheck number pointer pointer_string check_pointer hex_string "
        "widen_string va_format symbol_string ip4_string dentry_name hex_dump_to_buffer print_hex_dump "
        "print_hex_dump_bytes printk vprintk vprintk_emit vprintk_store vprintk_default vprintk_deferred "
        "vprintk_func printk_deferred dev_printk dev_printk_emit dev_vprintk_emit dev_info dev_notice dev_warn "
        "dev_err dev_alert dev_crit dev_emerg dev_err_probe netdev_info netdev_notice netdev_warn netdev_err "
        "netdev_printk seq_printf seq_puts seq_putc seq_write seq_vprintf sysfs_emit sysfs_emit_at copy_from_user "
        "copy_to_user copy_in_user raw_copy_from_user raw_copy_to_user arch_copy_from_user arch_copy_to_user "
        "copy_user_generic copy_user_generic_string copy_user_generic_unrolled copy_user_enhanced_fast_string "
        "copy_user_handle_tail copyin copyout copy_page copy_page_to_iter copy_page_from_iter "
        "copy_page_from_iter_atomic copy_folio_to_iter copy_to_iter copy_from_iter copy_from_iter_full "
        "copy_from_iter_full_nocache copy_from_iter_nocache simple_copy_to_iter instrument_copy_to_user "
        "iterate_and_advance extract_iter_to_sg extract_user_to_sg rep_movs_alternative rep_stos_alternative "
        "clear_user clear_page clear_page_erms clear_page_rep clear_page_orig strncpy_from_user strnlen_user "
        "get_user put_user get_user_1 get_user_2 get_user_4 get_user_8 put_user_1 put_user_2 put_user_4 "
        "put_user_8 get_user_nocheck_1 get_user_nocheck_2 get_user_nocheck_4 get_user_nocheck_8 "
        "put_user_nocheck_1 put_user_nocheck_2 put_user_nocheck_4 put_user_nocheck_8 crc16 crc16_update crc32_le "
        "crc32_le_base crc32_be crc32c crc32c_le_base crc_itu_t crc_ccitt crc_t10dif csum_partial "
        "csum_partial_copy_from_user csum_partial_copy_generic do_csum readb readw readl readq writeb writew "
        "writel writeq ioread8 ioread16 ioread32 iowrite8 iowrite16 iowrite32 inb inw inl outb outw outl "
        "logic_inb logic_outb raw_readb raw_writeb raw_readl raw_writel logic_inl logic_outl",
    ),
    Group(
        "keeps a data structure for its caller",
        "rb_erase rb_erase_cached rb_insert_color rb_insert_augmented rb_next rb_prev rb_first rb_first_postorder "
        "rb_next_postorder rb_last rb_replace_node xas_alloc xas_shrink xas_squash_marks xas_split "
        "xas_split_alloc xas_clear_mark xas_init_marks xas_destroy xas_update xas_next xas_prev xa_set_mark "
        "xa_clear_mark xa_get_mark xa_delete_node xa_cmpxchg xa_store_range xa_extract rb_erase_color "
        "rb_replace_node_rcu rb_left_deepest_node idr_preload idr_get_next_ul ida_find_first_range mas_prev "
        "mas_wr_store_entry mas_preallocate mtree_store mtree_erase mtree_insert rhashtable_walk_next "
        "rhashtable_walk_start rhashtable_free_and_destroy rhashtable_insert_slow xas_start xas_load xas_find "
        "xas_find_marked xas_store xas_create xas_nomem xas_set_mark xas_descend xas_expand xas_next_entry "
        "xas_prev_entry xas_pause xas_reload xa_load xa_store xa_erase xa_find xa_find_after xa_insert xa_alloc "
        "xa_alloc_cyclic xa_destroy radix_tree_lookup radix_tree_lookup_slot radix_tree_insert radix_tree_delete "
        "radix_tree_delete_item radix_tree_next_chunk radix_tree_tag_set radix_tree_tag_clear "
        "radix_tree_load_root radix_tree_descend idr_alloc idr_alloc_u32 idr_alloc_cyclic idr_find idr_remove "
        "idr_get_next idr_get_free idr_replace idr_for_each idr_destroy ida_alloc_range ida_free ida_destroy "
        "mas_walk mas_find mas_next mas_store mas_erase mas_start mtree_load mt_find rhashtable_lookup "
        "rhashtable_lookup_fast rhashtable_insert_fast rhashtable_remove_fast rht_lookup klist_init klist_next "
        "klist_put klist_prev klist_del klist_remove klist_add_tail klist_iter_init_node klist_dec_and_del "
        "llist_add_batch llist_reverse_order plist_add plist_del list_lru_add list_lru_del list_sort sort sort_r "
        "bsearch hlist_add_head hlist_del hlist_del_init find_next_bit find_first_bit find_next_zero_bit "
        "find_first_zero_bit test_and_set_bit test_and_clear_bit set_bit clear_bit change_bit test_bit bitmap_set "
        "bitmap_clear bitmap_find_next_zero_area_off atomic_read atomic_set atomic_inc atomic_dec atomic_add "
        "atomic_sub kfifo_in kfifo_out kfifo_alloc percpu_counter_add_batch percpu_counter_sum "
        "xas_move_index d_walk shrink_dcache_parent shrink_dentry_list",
    ),
    Group(
        "handles a socket buffer for its caller",
        "skb_panic skb_over_panic skb_under_panic skb_put skb_push skb_pull skb_pull_data skb_pull_rcsum skb_trim "
        "skb_copy skb_copy_bits skb_copy_expand skb_copy_datagram_iter skb_copy_header skb_copy_ubufs skb_clone "
        "skb_store_bits skb_checksum skb_checksum_help skb_copy_and_csum_bits skb_release_data skb_release_all "
        "skb_release_head_state skb_headers_offset_update skb_expand_head skb_realloc_headroom skb_cow_data "
        "skb_unlink skb_dequeue skb_dequeue_tail skb_queue_head skb_queue_tail skb_queue_purge "
        "skb_queue_purge_reason skb_append skb_insert skb_segment skb_try_coalesce skb_split skb_pad skb_to_sgvec "
        "skb_to_sgvec_nomark skb_gso_segment skb_mac_gso_segment skb_set_owner_w pskb_expand_head "
        "pskb_copy_fclone pskb_trim pskb_carve pskb_put pskb_pull_tail pskb_may_pull skb_linearize alloc_skb "
        "alloc_skb_with_frags napi_alloc_skb netdev_alloc_skb sock_alloc_send_skb sock_alloc_send_pskb build_skb "
        "napi_build_skb kfree_skb kfree_skb_reason kfree_skb_list kfree_skb_list_reason kfree_skbmem "
        "kfree_skb_partial consume_skb napi_consume_skb dev_kfree_skb_any dev_kfree_skb_any_reason "
        "dev_kfree_skb_irq dev_kfree_skb_irq_reason sk_skb_reason_drop sock_wfree sock_rfree nla_put nla_memcpy "
        "nla_strcmp nla_strscpy",
    ),
    Group(
        "keeps the device model and its files for its caller",
        "kobject_add kobject_add_internal kobject_add_varg kobject_init kobject_init_and_add "
        "kobject_create_and_add kobject_put kobject_get kobject_get_unless_zero kobject_del kobject_cleanup "
        "kobject_release kobject_delayed_cleanup kobject_set_name kobject_set_name_vargs kobject_rename "
        "kobject_move kobject_namespace kobject_uevent kobject_uevent_env kobject_get_path kset_register "
        "kset_unregister kset_create_and_add add_uevent_var kset_find_obj kobject_init_internal kobj_kset_leave "
        "kobj_kset_join kobject_get_ownership sysfs_update_group sysfs_update_groups sysfs_unmerge_group "
        "sysfs_chmod_file sysfs_add_file_to_group sysfs_remove_file_from_group sysfs_delete_link "
        "sysfs_file_change_owner sysfs_remove_mount_point sysfs_remove_file_self kernfs_find_ns "
        "kernfs_remove_by_name sysfs_warn_dup sysfs_create_dir_ns sysfs_create_dir sysfs_add_file_mode_ns "
        "sysfs_add_file sysfs_add_bin_file_mode_ns sysfs_create_file_ns sysfs_create_files sysfs_create_bin_file "
        "sysfs_create_link sysfs_create_link_nowarn sysfs_do_create_link sysfs_do_create_link_sd "
        "sysfs_create_group sysfs_create_groups sysfs_create_mount_point sysfs_merge_group internal_create_group "
        "internal_create_groups sysfs_remove_dir sysfs_remove_file_ns sysfs_remove_files sysfs_remove_link "
        "sysfs_remove_group sysfs_remove_groups sysfs_remove_bin_file sysfs_rename_dir_ns sysfs_notify "
        "remove_files kernfs_add_one kernfs_create_dir_ns kernfs_create_file_ns kernfs_create_link "
        "kernfs_create_empty_dir kernfs_remove kernfs_remove_by_name_ns kernfs_find_and_get_ns kernfs_get "
        "kernfs_put kernfs_name_hash kernfs_drain kernfs_activate kernfs_link_sibling kernfs_path_from_node "
        "proc_register proc_register_name proc_mkdir proc_mkdir_data proc_mkdir_mode proc_create proc_create_data "
        "proc_create_reg proc_create_seq_private proc_create_single_data proc_symlink proc_remove "
        "remove_proc_entry remove_proc_subtree device_add device_initialize device_register device_create "
        "device_create_vargs device_create_with_groups device_create_groups_vargs device_del device_unregister "
        "device_destroy device_release device_add_attrs device_add_groups device_create_file "
        "device_create_bin_file device_remove_file device_remove_attrs device_remove_groups device_for_each_child "
        "device_find_child device_move device_rename get_device put_device get_device_parent bus_add_device "
        "bus_add_driver bus_remove_device bus_remove_driver driver_register driver_unregister driver_add_groups "
        "driver_create_file driver_sysfs_add class_create class_register class_destroy class_unregister "
        "class_create_file_ns cdev_add cdev_del cdev_device_add cdev_device_del misc_register misc_deregister "
        "dpm_sysfs_add dpm_sysfs_remove devres_release_all devres_release devres_destroy devres_open_group "
        "devm_action_release root_device_register root_device_unregister dev_set_name module_add_driver "
        "mod_sysfs_setup add_notes_attrs add_sect_attrs register_chrdev register_chrdev_region unregister_chrdev "
        "debugfs_create_dir debugfs_create_file debugfs_remove debugfs_remove_recursive",
    ),
    Group(
        "does for a driver, or a file system, what it was asked for",
        "usb_submit_urb usb_kill_urb usb_kill_anchored_urbs usb_control_msg usb_control_msg_send "
        "usb_control_msg_recv usb_start_wait_urb usb_internal_control_msg usb_bulk_msg usb_interrupt_msg "
        "usb_hcd_submit_urb usb_unlink_urb usb_hcd_unlink_urb usb_free_urb usb_get_descriptor rollback_registered "
        "rollback_registered_many unregister_netdev unregister_netdevice_queue unregister_netdevice_many "
        "unregister_netdevice_many_notify register_netdev register_netdevice tty_unregister_device "
        "hwrng_unregister i2c_del_adapter unregister_client queue_work queue_work_on queue_delayed_work "
        "queue_delayed_work_on insert_work mod_delayed_work_on kthread_queue_work kthread_insert_work mod_timer "
        "add_timer add_timer_on internal_add_timer hrtimer_start_range_ns iput iput_final ihold dput dput_to_list "
        "fast_dput drop_nlink inc_nlink mark_buffer_dirty mark_inode_dirty cleanup_srcu_struct "
        "truncate_inode_pages_range find_lock_entries do_read_cache_folio do_read_cache_page read_cache_folio_gfp "
        "filemap_get_folio filemap_alloc_folio pagecache_get_page grab_cache_page_write_begin folios_put_refs "
        "folio_batch_move_lru reiserfs_panic reiserfs_write_lock kill_fasync call_rcu call_rcu_common "
        "call_rcu_sched call_rcu_bh call_rcu_tasks call_srcu kvfree_call_rcu init_timer_key",
    ),
    Group(
        "records a trace event",
        "perf_trace_buf_alloc perf_trace_run_bpf_submit trace_call_bpf trace_lock_acquire trace_kmalloc "
        "trace_printk perf_trace_lock perf_trace_lock_acquire perf_trace_lock_acquired "
        "perf_trace_preemptirq_template perf_trace_buf_update perf_tp_event perf_swevent_event printk_safe_flush "
        "printk_safe_log_store printk_safe_flush_on_panic debug_lockdep_rcu_enabled console_unlock "
        "console_trylock_spinning down_trylock_console_sem console_flush_all msg_print_text print_time print_prefix "
        "prb_read prb_read_valid",
    ),
    Group(
        "walks a stack that some tool keeps",
        "kernel_text_address core_kernel_text is_module_text_address is_bpf_text_address bpf_prog_kallsyms_find "
        "is_ftrace_trampoline print_context_stack unwind_get_return_address deref_stack_reg",
    ),
    Group(
        "a thunk: whoever called through it is to blame",
        "indirect_thunk_start x86_return_thunk retpoline_entry clear_bhb_loop entry_ibpb warn_thunk_thunk "
        "its_return_thunk traceiter_dummy fentry mcount ftrace_caller ftrace_call ftrace_regs_call ftrace_stub "
        "call_depth_return_thunk srso_return_thunk srso_alias_return_thunk",
        r"x86_indirect_\w+|llvm_retpoline_\w+|x86_call_depth_\w+|SCT__\w+|SCK__\w+",
    ),
    Group(
        "Rust's own library",
        "rust_helper_BUG rust_begin_unwind rust_helper_krealloc rust_helper_spin_unlock rust_helper_spin_lock "
        "rust_helper_mutex_lock rust_helper_build_error",
        r"<?(?:core|alloc|compiler_builtins|rustc)::.*|rust_helper_\w+",
    ),
    Group(
        "the idle CPU",
        "native_safe_halt safe_halt arch_safe_halt default_idle default_idle_call arch_cpu_idle cpu_idle cpu_idle_loop "
        "cpu_idle_poll poll_idle do_idle cpu_startup_entry cpuidle_enter cpuidle_enter_state cpuidle_idle_call "
        "call_cpuidle intel_idle intel_idle_irq mwait_idle mwait_idle_with_hints acpi_idle_enter acpi_idle_do_entry "
        "acpi_safe_halt acpi_processor_ffh_cstate_enter cpu_do_idle arch_cpu_idle_enter r4k_wait_irqoff "
        "tick_nohz_idle_enter tick_nohz_idle_exit rest_init",
    ),
    Group(
        "calls what others have registered",
        "process_one_work process_scheduled_works worker_thread rescuer_thread kthread kthread_worker_fn "
        "ret_from_fork ret_from_fork_asm ret_from_kernel_thread ret_from_kernel_user_thread kernel_thread_helper "
        "kernel_thread_starter start_secondary secondary_startup_64 secondary_startup_64_no_verify "
        "secondary_start_kernel common_startup_64 cpuhp_thread_fun do_syscall_64 do_syscall_32 do_fast_syscall_32 "
        "do_int80_syscall_32 entry_SYSCALL_64 entry_SYSCALL_64_after_hwframe entry_SYSCALL_64_after_swapgs "
        "entry_SYSCALL_64_fastpath entry_SYSENTER_32 entry_SYSENTER_compat entry_SYSENTER_compat_after_hwframe "
        "entry_SYSCALL_compat entry_INT80_32 entry_INT80_compat system_call_fastpath sysenter_dispatch "
        "x64_sys_call ia32_sys_call do_el0_svc el0_svc el0_svc_common el0_svc_naked el0_svc_handler "
        "invoke_syscall el0t_64_sync el0t_64_sync_handler el0_sync el0_sync_handler ret_fast_syscall ret_to_user "
        "tracesys_phase2 system_call_exception system_call_vectored_common system_call_common system_call "
        "do_syscall syscall_exit_to_user_mode syscall_exit_to_user_mode_work exit_to_user_mode_prepare "
        "exit_to_user_mode_loop prepare_exit_to_usermode exit_to_usermode_loop do_notify_resume work_pending "
        "task_work_run",
        enters=True,
    ),
)


def reason_to_skip(name: str, module: str | None = None) -> str | None:
    """Why this function, of the kernel or of a module, is not the guilty one; None for one that may be."""
    group = _find(name)
    mine = group is not None and (module in group.modules if group.modules or module else True)
    return group.reason if group and mine else None


def is_reporter(name: str) -> bool:
    """Whether this function only prints reports or handles traps."""
    group = _find(name)
    return group is not None and group.reports


def is_yielding(name: str) -> bool:
    """Whether this function gives up the CPU, or waits for who should."""
    group = _find(name)
    return group is not None and group.yields


def is_entry(name: str) -> bool:
    """Whether this function only calls others: system calls, work items, threads."""
    group = _find(name)
    return group is not None and group.enters


def is_interrupt(name: str) -> bool:
    """Whether an interrupt enters the kernel in this function."""
    group = _find(name)
    return group is not None and group.interrupts


def is_innocent(name: str) -> bool:
    """Whether a stack with this function tells of no bug."""
    group = _find(name)
    return group is not None and group.innocent


def _indexed() -> dict[str, Group]:
    return {name.lstrip("_"): group for group in reversed(GROUPS) for name in group.names.split()}


_NAMES = _indexed()
_PATTERNS = tuple((re.compile(group.pattern), group) for group in GROUPS)


@lru_cache(maxsize=4096)
def _find(name: str) -> Group | None:
    plain = name.lstrip("_").removesuffix("_noprof")
    found = _NAMES.get(plain)
    if found:
        return found
    return next((group for pattern, group in _PATTERNS if pattern.fullmatch(plain)), None)

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A driver for QEMU's edu device that misbehaves as it is told, in /sys/module/faulty/parameters:
 *
 *   mode     "prompt": remove returns at once; "slow": after `seconds`; "hang": not before mode is another;
 *            "failing": the next `times` probes fail
 *   seconds
 *   times    counts down to 0
 *
 * It has no alias, so nobody loads it but a test.
 */
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/string.h>
#include <linux/wait.h>

enum mode { PROMPT, SLOW, HANG, FAILING };

static const char *const names[] = {
	[PROMPT] = "prompt", [SLOW] = "slow", [HANG] = "hang", [FAILING] = "failing",
};

static enum mode mode;
static unsigned int seconds;
static unsigned int times;
static DECLARE_WAIT_QUEUE_HEAD(changed);

static int set_mode(const char *text, const struct kernel_param *param)
{
	int index = sysfs_match_string(names, text);

	if (index < 0)
		return index;
	WRITE_ONCE(mode, index);
	wake_up_all(&changed);
	return 0;
}

static int get_mode(char *text, const struct kernel_param *param)
{
	return sysfs_emit(text, "%s\n", names[READ_ONCE(mode)]);
}

static const struct kernel_param_ops mode_ops = { .set = set_mode, .get = get_mode };

module_param_cb(mode, &mode_ops, NULL, 0644);
module_param(seconds, uint, 0644);
module_param(times, uint, 0644);

static int faulty_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	/* One device only: nothing else counts at the same time. */
	if (READ_ONCE(mode) == FAILING && times > 0) {
		times--;
		pci_info(device, "probe fails as told, %u more times\n", times);
		return -EIO;
	}
	pci_info(device, "bound\n");
	return 0;
}

static void faulty_remove(struct pci_dev *device)
{
	pci_info(device, "remove: %s\n", names[READ_ONCE(mode)]);
	/* Without interruption, as in a driver that waits for its hardware: no signal ends this. */
	if (READ_ONCE(mode) == SLOW)
		wait_event_timeout(changed, READ_ONCE(mode) != SLOW, seconds * HZ);
	wait_event(changed, READ_ONCE(mode) != HANG);
	pci_info(device, "removed\n");
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(0x1234, 0x11e8) }, {} };

static struct pci_driver faulty_driver = {
	.name = "faulty",
	.id_table = ids,
	.probe = faulty_probe,
	.remove = faulty_remove,
};

module_pci_driver(faulty_driver);

MODULE_DESCRIPTION("PCI driver that misbehaves as a test tells it");
MODULE_LICENSE("GPL");

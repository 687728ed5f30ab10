// SPDX-License-Identifier: GPL-2.0
/* Drives QEMU's teaching device: registers, an interrupt and DMA (docs/specs/edu.rst in QEMU). */
#include <linux/bitops.h>
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/string.h>

#define EDU_ID			0x00
#define EDU_LIVENESS		0x04
#define EDU_FACTORIAL		0x08
#define EDU_STATUS		0x20
#define  EDU_STATUS_IRQ		BIT(7)
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_FROM		0x80
#define EDU_DMA_TO		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define  EDU_DMA_RUN		BIT(0)
#define  EDU_DMA_TO_RAM		BIT(1)
#define  EDU_DMA_IRQ		BIT(2)
#define EDU_BUFFER		0x40000		/* the device's own memory, as its DMA engine sees it */
#define EDU_ADDRESS_BITS	28
#define BLOCK			64

struct edu {
	struct pci_dev *pci;
	void __iomem *registers;
	struct mutex lock;		/* one question at a time */
	struct completion answered;
	void *block;
	dma_addr_t block_address;
};

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct edu *edu = data;
	u32 status = ioread32(edu->registers + EDU_IRQ_STATUS);

	if (!status)
		return IRQ_NONE;	/* the line may be shared */
	iowrite32(status, edu->registers + EDU_IRQ_ACK);
	complete(&edu->answered);
	return IRQ_HANDLED;
}

static int wait_for_answer(struct edu *edu)
{
	return wait_for_completion_timeout(&edu->answered, 5 * HZ) ? 0 : -ETIMEDOUT;
}

static int compute_factorial(struct edu *edu, u32 number, u32 *result)
{
	int error;

	mutex_lock(&edu->lock);
	reinit_completion(&edu->answered);
	iowrite32(EDU_STATUS_IRQ, edu->registers + EDU_STATUS);
	iowrite32(number, edu->registers + EDU_FACTORIAL);
	error = wait_for_answer(edu);
	*result = ioread32(edu->registers + EDU_FACTORIAL);
	mutex_unlock(&edu->lock);
	return error;
}

static int copy_block(struct edu *edu, dma_addr_t from, dma_addr_t to, u32 direction)
{
	reinit_completion(&edu->answered);
	iowrite32(from, edu->registers + EDU_DMA_FROM);
	iowrite32(to, edu->registers + EDU_DMA_TO);
	iowrite32(BLOCK, edu->registers + EDU_DMA_COUNT);
	iowrite32(EDU_DMA_RUN | direction | EDU_DMA_IRQ, edu->registers + EDU_DMA_COMMAND);
	return wait_for_answer(edu);
}

/* Sends a block to the device, destroys it here, and fetches it again. */
static int check_dma(struct edu *edu)
{
	int error;

	memset(edu->block, 0x5a, BLOCK);
	error = copy_block(edu, edu->block_address, EDU_BUFFER, 0);
	if (error)
		return error;
	memset(edu->block, 0, BLOCK);
	error = copy_block(edu, EDU_BUFFER, edu->block_address, EDU_DMA_TO_RAM);
	if (error)
		return error;
	if (memchr_inv(edu->block, 0x5a, BLOCK))
		return -EIO;
	dev_info(&edu->pci->dev, "%d bytes came back by DMA\n", BLOCK);
	return 0;
}

static ssize_t factorial_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	u32 number, result;
	int error = kstrtou32(text, 0, &number);

	error = error ?: compute_factorial(dev_get_drvdata(dev), number, &result);
	if (error)
		return error;
	dev_info(dev, "%u! is %u\n", number, result);
	return size;
}
static DEVICE_ATTR_WO(factorial);

static struct attribute *edu_attrs[] = { &dev_attr_factorial.attr, NULL };
ATTRIBUTE_GROUPS(edu);

static int edu_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	struct edu *edu = devm_kzalloc(&pci->dev, sizeof(*edu), GFP_KERNEL);
	int error;

	if (!edu)
		return -ENOMEM;
	edu->pci = pci;
	mutex_init(&edu->lock);
	init_completion(&edu->answered);
	error = pci_enable_device(pci);
	if (error)
		return error;
	error = pci_request_regions(pci, KBUILD_MODNAME);
	if (error)
		goto disable;
	edu->registers = pci_iomap(pci, 0, 0);
	if (!edu->registers) {
		error = -ENOMEM;
		goto release;
	}
	pci_set_master(pci);
	error = dma_set_mask_and_coherent(&pci->dev, DMA_BIT_MASK(EDU_ADDRESS_BITS));
	if (error)
		goto unmap;
	edu->block = dma_alloc_coherent(&pci->dev, BLOCK, &edu->block_address, GFP_KERNEL);
	if (!edu->block) {
		error = -ENOMEM;
		goto unmap;
	}
	error = pci_alloc_irq_vectors(pci, 1, 1, PCI_IRQ_ALL_TYPES);
	if (error < 0)
		goto free_block;
	error = request_irq(pci_irq_vector(pci, 0), edu_interrupt, IRQF_SHARED, KBUILD_MODNAME, edu);
	if (error)
		goto free_vectors;
	iowrite32(0x1234, edu->registers + EDU_LIVENESS);
	if (ioread32(edu->registers + EDU_LIVENESS) != ~0x1234U) {
		error = -ENODEV;
		goto free_interrupt;
	}
	error = check_dma(edu);
	if (error)
		goto free_interrupt;
	pci_set_drvdata(pci, edu);
	dev_info(&pci->dev, "revision %08x is ready\n", ioread32(edu->registers + EDU_ID));
	return 0;

free_interrupt:
	free_irq(pci_irq_vector(pci, 0), edu);
free_vectors:
	pci_free_irq_vectors(pci);
free_block:
	dma_free_coherent(&pci->dev, BLOCK, edu->block, edu->block_address);
unmap:
	pci_iounmap(pci, edu->registers);
release:
	pci_release_regions(pci);
disable:
	pci_disable_device(pci);
	return error;
}

/* In the opposite order: nothing may use what is already gone. */
static void edu_remove(struct pci_dev *pci)
{
	struct edu *edu = pci_get_drvdata(pci);

	free_irq(pci_irq_vector(pci, 0), edu);
	pci_free_irq_vectors(pci);
	pci_clear_master(pci);
	dma_free_coherent(&pci->dev, BLOCK, edu->block, edu->block_address);
	pci_iounmap(pci, edu->registers);
	pci_release_regions(pci);
	pci_disable_device(pci);
	dev_info(&pci->dev, "gone\n");
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.dev_groups = edu_groups,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("Drives QEMU's teaching device");
MODULE_LICENSE("GPL");

// SPDX-License-Identifier: GPL-2.0
/* Frees its interrupt after the registers that the handler reads. */
#include <linux/bitops.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>

#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_FROM		0x80
#define EDU_DMA_TO		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define  EDU_DMA_RUN		BIT(0)
#define  EDU_DMA_IRQ		BIT(2)
#define EDU_BUFFER		0x40000
#define BLOCK			64

struct card {
	void __iomem *registers;
	void *block;
	dma_addr_t block_address;
};

static irqreturn_t card_interrupt(int irq, void *data)
{
	struct card *card = data;
	u32 status = ioread32(card->registers + EDU_IRQ_STATUS);

	if (!status)
		return IRQ_NONE;
	iowrite32(status, card->registers + EDU_IRQ_ACK);
	return IRQ_HANDLED;
}

static int card_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	struct card *card = devm_kzalloc(&pci->dev, sizeof(*card), GFP_KERNEL);
	int error;

	if (!card)
		return -ENOMEM;
	error = pci_enable_device(pci);
	if (error)
		return error;
	pci_set_master(pci);
	error = dma_set_mask_and_coherent(&pci->dev, DMA_BIT_MASK(28));
	if (error)
		goto disable;
	error = -ENOMEM;
	card->registers = pci_iomap(pci, 0, 0);
	if (!card->registers)
		goto disable;
	card->block = dma_alloc_coherent(&pci->dev, BLOCK, &card->block_address, GFP_KERNEL);
	if (!card->block)
		goto unmap;
	error = pci_alloc_irq_vectors(pci, 1, 1, PCI_IRQ_ALL_TYPES);
	if (error < 0)
		goto free_block;
	error = request_irq(pci_irq_vector(pci, 0), card_interrupt, IRQF_SHARED, KBUILD_MODNAME, card);
	if (error)
		goto free_vectors;
	pci_set_drvdata(pci, card);
	return 0;

free_vectors:
	pci_free_irq_vectors(pci);
free_block:
	dma_free_coherent(&pci->dev, BLOCK, card->block, card->block_address);
unmap:
	pci_iounmap(pci, card->registers);
disable:
	pci_disable_device(pci);
	return error;
}

/* Sends the last block to the card, which says with an interrupt that it has it. */
static void send_last_block(struct card *card)
{
	iowrite32(card->block_address, card->registers + EDU_DMA_FROM);
	iowrite32(EDU_BUFFER, card->registers + EDU_DMA_TO);
	iowrite32(BLOCK, card->registers + EDU_DMA_COUNT);
	iowrite32(EDU_DMA_RUN | EDU_DMA_IRQ, card->registers + EDU_DMA_COMMAND);
}

static void card_remove(struct pci_dev *pci)
{
	struct card *card = pci_get_drvdata(pci);

	send_last_block(card);
	/* The bug: the interrupt comes while the registers are gone, and free_irq() comes too late. */
	pci_iounmap(pci, card->registers);
	card->registers = NULL;
	msleep(1000);
	free_irq(pci_irq_vector(pci, 0), card);
	pci_free_irq_vectors(pci);
	dma_free_coherent(&pci->dev, BLOCK, card->block, card->block_address);
	pci_disable_device(pci);
}

static const struct pci_device_id card_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, card_ids);

static struct pci_driver card_driver = {
	.name = KBUILD_MODNAME,
	.id_table = card_ids,
	.probe = card_probe,
	.remove = card_remove,
};
module_pci_driver(card_driver);

MODULE_DESCRIPTION("Frees its interrupt too late");
MODULE_LICENSE("GPL");
